"""What Prometheus reads, after what a job did."""

import contextlib
import json
import math
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lockstep_server.metrics import KEEP_S, Metrics
from tests.server.fakes import epoch_record, step_record

JOB = "4be1c0ffee00"
OTHER = "0123456789ab"
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return what a scrape reads."""
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name == f"lockstep_{name}" and sample.labels == labels:
                return float(sample.value)
    return None


def job_value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return value(metrics, f"job_{name}", job_id=JOB, **labels)


def live_through_everything(metrics: Metrics, job_id: str = JOB) -> None:
    """Bring every metric of a job to life."""
    metrics.job_started(job_id)
    metrics.job_changed(job_id, "RUNNING")
    metrics.workers(job_id, {"computing": 2, "idle": 1})
    metrics.steps(job_id, [step_record(0)])
    metrics.exchanged(job_id, "in", 1)
    metrics.exchanged(job_id, "out", 1)
    metrics.reassigned(job_id, 1)
    metrics.duplicates(job_id, 1)
    metrics.speculative(job_id, 1)
    metrics.corrupt(job_id, 1)
    metrics.norms(job_id, [1.0, 2.0], [3.0, 4.0])
    metrics.epoch(job_id, epoch_record(0, validation_loss=0.5))
    metrics.checkpoint(job_id, 0.1, 100)


def everything() -> Metrics:
    metrics = Metrics()
    metrics.jobs({"PENDING": 1, "RUNNING": 1}, queue_depth=1)
    live_through_everything(metrics)
    metrics.rpc("lockstep.v1.JobService/Get", "OK", 0.01)
    return metrics


def test_the_gauges_of_a_job_show_its_last_step_and_its_counters_the_sum_of_all() -> None:
    metrics = Metrics()
    metrics.job_started(JOB)
    first, second = step_record(0, loss=2.5, learning_rate=0.5), step_record(1, loss=1.25, learning_rate=0.25)
    metrics.steps(JOB, [first._replace(num_rows=256), second._replace(num_rows=100)])
    assert job_value(metrics, "step") == 2
    assert job_value(metrics, "loss", split="training") == 1.25
    assert job_value(metrics, "learning_rate") == 0.25
    assert job_value(metrics, "rows_total") == 356
    assert job_value(metrics, "updates_total") == 2


def test_the_seconds_of_steps_are_counted_and_split_into_parts() -> None:
    metrics = Metrics()
    metrics.job_started(JOB)
    metrics.steps(JOB, [step_record(0, step_s=0.75, compute_s=0.5, wait_s=0.125, transfer_s=0.0625)])
    metrics.steps(JOB, [step_record(1, step_s=0.0007, compute_s=0.25, wait_s=0.125, transfer_s=0.0)])
    assert job_value(metrics, "step_seconds_sum") == pytest.approx(0.7507)
    assert job_value(metrics, "step_seconds_count") == 2
    assert job_value(metrics, "step_seconds_bucket", le="0.0005") == 0
    assert job_value(metrics, "step_seconds_bucket", le="0.001") == 1
    assert job_value(metrics, "step_seconds_bucket", le="1.0") == 2
    assert job_value(metrics, "step_part_seconds_total", part="compute") == 0.75
    assert job_value(metrics, "step_part_seconds_total", part="wait") == 0.25
    assert job_value(metrics, "step_part_seconds_total", part="transfer") == 0.0625


def test_a_job_that_has_not_trained_yet_has_counters_at_zero_and_no_loss() -> None:
    metrics = Metrics()
    metrics.job_started(JOB)
    for name in ("rows", "updates", "shards_reassigned", "duplicates_dropped", "speculative_copies", "corrupt_copies"):
        assert job_value(metrics, f"{name}_total") == 0
    assert job_value(metrics, "exchanged_bytes_total", direction="in") == 0
    for name in ("step", "epoch", "learning_rate"):
        assert job_value(metrics, name) is None
    assert job_value(metrics, "loss", split="training") is None


def test_an_epoch_without_an_evaluation_leaves_the_validation_loss_as_it_was() -> None:
    metrics = Metrics()
    metrics.epoch(JOB, epoch_record(0))
    assert job_value(metrics, "epoch") == 1
    assert job_value(metrics, "loss", split="validation") is None
    metrics.epoch(JOB, epoch_record(1, validation_loss=0.375))
    metrics.epoch(JOB, epoch_record(2, validation_loss=math.nan))
    assert job_value(metrics, "epoch") == 3
    assert job_value(metrics, "loss", split="validation") == 0.375


def test_norms_carry_the_number_of_their_layer_from_2_to_L() -> None:
    metrics = Metrics()
    metrics.norms(JOB, gradient=[0.5, 0.25, 0.125], weight=[5.0, 6.0, 7.0])
    assert [job_value(metrics, "gradient_norm", layer=str(n)) for n in (1, 2, 3, 4)] == [None, 0.5, 0.25, 0.125]
    assert [job_value(metrics, "weight_norm", layer=str(n)) for n in (2, 3, 4, 5)] == [5, 6, 7, None]


def test_workers_are_shown_by_state_and_are_none_once_the_job_does_not_run() -> None:
    metrics = Metrics()
    metrics.job_started(JOB)
    metrics.workers(JOB, {"computing": 3, "idle": 1})
    metrics.job_changed(JOB, "RUNNING")
    assert job_value(metrics, "workers", state="computing") == 3
    assert job_value(metrics, "workers", state="idle") == 1
    metrics.job_changed(JOB, "PAUSED")
    assert job_value(metrics, "workers", state="computing") == 0
    assert job_value(metrics, "workers", state="idle") == 0


def test_a_job_that_never_ran_gets_no_series_when_its_state_changes() -> None:
    metrics = Metrics()
    metrics.job_changed(JOB, "STOPPED")
    assert JOB not in metrics.exposition().decode()


def test_bytes_and_mishaps_add_up() -> None:
    metrics = Metrics()
    metrics.job_started(JOB)
    for count in (3, 4):
        metrics.exchanged(JOB, "in", 1000 * count)
        metrics.exchanged(JOB, "out", 100 * count)
        metrics.reassigned(JOB, count)
        metrics.duplicates(JOB, 10 * count)
        metrics.speculative(JOB, 20 * count)
        metrics.corrupt(JOB, 30 * count)
    assert job_value(metrics, "exchanged_bytes_total", direction="in") == 7000
    assert job_value(metrics, "exchanged_bytes_total", direction="out") == 700
    assert job_value(metrics, "shards_reassigned_total") == 7
    assert job_value(metrics, "duplicates_dropped_total") == 70
    assert job_value(metrics, "speculative_copies_total") == 140
    assert job_value(metrics, "corrupt_copies_total") == 210


def test_a_checkpoint_ages_until_the_next_one() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.checkpoint(JOB, 0.25, 4096)
    clock.now += 42
    assert job_value(metrics, "checkpoint_seconds") == 0.25
    assert job_value(metrics, "checkpoint_bytes") == 4096
    assert job_value(metrics, "checkpoint_age_seconds") == 42
    metrics.checkpoint(JOB, 0.5, 5000)
    clock.now += 1
    assert job_value(metrics, "checkpoint_age_seconds") == 1
    assert job_value(metrics, "checkpoint_bytes") == 5000


def test_jobs_are_counted_by_state_in_lower_case() -> None:
    metrics = Metrics()
    metrics.jobs({"PENDING": 2, "RUNNING": 1, "FAILED": 4}, queue_depth=2)
    metrics.jobs({"PENDING": 0, "RUNNING": 1, "FAILED": 5}, queue_depth=0)
    assert [value(metrics, "jobs", state=state) for state in ("pending", "running", "failed")] == [0, 1, 5]
    assert value(metrics, "queue_depth") == 0


def test_calls_are_observed_by_method_and_code() -> None:
    metrics = Metrics()
    for seconds in (0.25, 0.5):
        metrics.rpc("lockstep.v1.JobService/Get", "OK", seconds)
    metrics.rpc("lockstep.v1.JobService/Get", "NOT_FOUND", 0.125)
    method = "lockstep.v1.JobService/Get"
    assert value(metrics, "rpc_seconds_sum", method=method, code="OK") == 0.75
    assert value(metrics, "rpc_seconds_count", method=method, code="OK") == 2
    assert value(metrics, "rpc_seconds_sum", method=method, code="NOT_FOUND") == 0.125


def test_the_build_is_told() -> None:
    (line,) = [line for line in Metrics().exposition().decode().splitlines() if line.startswith("lockstep_build_info{")]
    assert f'numpy="{np.__version__}"' in line
    assert f'python="{sys.version.split()[0]}"' in line
    assert 'version="' in line
    assert line.endswith(" 1.0")


# How long series live


def test_the_series_of_an_ended_job_stay_fifteen_minutes_and_then_all_go() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    live_through_everything(metrics, JOB)
    live_through_everything(metrics, OTHER)
    metrics.job_ended(JOB)
    before = metrics.exposition().decode()
    clock.now += 15 * 60 - 1
    assert metrics.exposition().decode().count(JOB) == before.count(JOB) > 20
    clock.now += 1
    after = metrics.exposition().decode()
    assert JOB not in after
    assert after.count(OTHER) == before.count(OTHER)


def test_a_running_job_keeps_its_series_for_ever() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    live_through_everything(metrics)
    clock.now += 100 * KEEP_S
    assert job_value(metrics, "updates_total") == 1


def test_a_job_that_is_taken_up_again_keeps_its_series_and_their_values() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    live_through_everything(metrics)
    metrics.job_ended(JOB)
    clock.now += KEEP_S - 1
    metrics.job_started(JOB)
    clock.now += KEEP_S
    metrics.steps(JOB, [step_record(1)])
    assert job_value(metrics, "updates_total") == 2


def test_what_is_told_of_a_job_after_its_series_went_begins_anew() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    live_through_everything(metrics)
    metrics.job_ended(JOB)
    clock.now += KEEP_S
    assert job_value(metrics, "updates_total") is None
    metrics.job_started(JOB)
    metrics.steps(JOB, [step_record(7)])
    assert job_value(metrics, "updates_total") == 1


def test_two_scrapes_at_the_same_time_remove_the_series_once() -> None:
    both_see_it = threading.Barrier(2)
    now, racing = 0.0, False

    def clock() -> float:
        if racing:
            with contextlib.suppress(threading.BrokenBarrierError):
                both_see_it.wait(0.2)  # in vain, if one scrape keeps the other out
        return now

    metrics = Metrics(clock=clock)
    metrics.job_started(JOB)
    metrics.job_ended(JOB)
    now, racing = KEEP_S, True
    with ThreadPoolExecutor(2) as scrapers:
        scrapes = [scrapers.submit(metrics.exposition) for _ in range(2)]
    assert [JOB in scrape.result().decode() for scrape in scrapes] == [False, False]


# The exposition as a whole


@pytest.mark.promtool
def test_promtool_has_nothing_to_say() -> None:
    answer = subprocess.run(
        ["promtool", "check", "metrics"], input=everything().exposition(), capture_output=True, check=False, timeout=60
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"", b"")


def families() -> dict[str, tuple[str, set[str]]]:
    """Return type and labels of every metric, by the name that queries use."""
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(everything().exposition().decode()):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[f"{family.name}_total" if family.type == "counter" else family.name] = (family.type, labels)
    return found


def test_every_metric_has_the_prefix_and_every_family_a_series() -> None:
    found = families()
    assert all(name.startswith("lockstep_") for name in found)
    assert not [name for name in found if name.endswith("_created")]
    assert all("job_id" in labels for name, (_, labels) in found.items() if name.startswith("lockstep_job_"))
    without_series = [
        family.name
        for family in text_string_to_metric_families(everything().exposition().decode())
        if not family.samples
    ]
    assert without_series == []


def documented() -> dict[str, tuple[str, set[str]]]:
    """Return what the tables of the page say: `| `name` | type | labels | meaning |`."""
    rows: dict[str, tuple[str, set[str]]] = {}
    for line in PAGE.read_text().splitlines():
        cells: list[Any] = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`lockstep_"):
            rows[cells[0].strip("`")] = (cells[1], set(re.findall(r"`(\w+)`", cells[2])))
    return rows


def test_the_page_names_exactly_the_metrics_there_are_with_type_and_labels() -> None:
    exported = {
        name: ("gauge" if name.endswith("_info") else kind, labels - ({"job_id"} if "_job_" in name else set()))
        for name, (kind, labels) in families().items()
    }
    assert documented() == exported


def queries() -> list[str]:
    return "".join(re.findall(r"```promql\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)).splitlines()


def test_the_queries_of_the_page_use_metrics_that_exist() -> None:
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\blockstep_\w+", " ".join(queries()))}
    assert used
    assert used <= set(families())


@pytest.mark.promtool
def test_the_queries_of_the_page_are_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "page", "rules": rules}]}))
    answer = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert f"{len(queries())} rules found" in answer.stdout
