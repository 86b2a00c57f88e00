"""What /metrics says of a job, against what the job did."""

import math
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import lockstep
from tests.client.processes import until

pytestmark = pytest.mark.cluster

RNG = np.random.default_rng(3)
NUM_ROWS, BATCH, EPOCHS = 500, 64, 6
X = RNG.normal(size=(NUM_ROWS, 8)).astype(np.float32)
Y = RNG.integers(0, 3, NUM_ROWS)
SPEC: dict[str, Any] = {
    "name": "measured",
    "network": {"inputs": 8, "layers": [{"units": 16, "activation": "relu"}, {"units": 3, "activation": "softmax"}]},
    "loss": "cross_entropy",
    "optimizer": {"sgd": {"learning_rate": 0.125, "momentum": 0.9}},
    "batch_size": BATCH,
    "epochs": EPOCHS,
    "shards": 4,
    "workers": {"min": 2},
}
NUM_PARAMETERS = 8 * 16 + 16 + 16 * 3 + 3
STEPS = EPOCHS * math.ceil(NUM_ROWS / 4 / (BATCH // 4))


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Measured:
    """A cluster, and what its server says of itself."""

    cluster: lockstep.LocalCluster
    client: lockstep.Client
    state_dir: Path

    def scrape(self) -> Samples:
        with urllib.request.urlopen(self.cluster.metrics_url, timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def scrape_after_the_end(self) -> Samples:
        """What is said when no job runs any more: it is told when the end is on disk, and clients know of it before."""
        until(lambda: self.scrape()["lockstep_jobs", frozenset({("state", "running")})] == 0)
        return self.scrape()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    state_dir = tmp_path_factory.mktemp("state")
    cluster = lockstep.LocalCluster(2, state_dir=state_dir)
    with cluster as client:
        yield Measured(cluster, client, state_dir)


def test_metrics_say_what_a_job_did(measured: Measured) -> None:
    alone = {"min": 1, "max": 1}  # late shards of one of two would be computed, and sent, by the other, too
    spec = SPEC | {"workers": alone}
    job = measured.client.submit(spec, data=(X, Y), validation=(X[:40], Y[:40])).wait(timeout_s=120)
    samples = measured.scrape_after_the_end()

    def value(name: str, **labels: str) -> float:
        return samples[f"lockstep_job_{name}", frozenset((labels | {"job_id": job.id}).items())]

    steps, epochs, model = job.history.steps, job.history.epochs, job.model()
    assert len(steps["step"]) == STEPS
    assert value("step") == value("updates_total") == value("step_seconds_count") == STEPS
    assert value("rows_total") == EPOCHS * NUM_ROWS
    assert value("epoch") == EPOCHS
    assert value("loss", split="training") == steps["loss"][-1]
    assert value("loss", split="validation") == epochs["validation_loss"][-1]
    assert value("learning_rate") == 0.125

    layers = [np.concatenate([w.ravel(), b]) for w, b in zip(model.weights, model.biases, strict=True)]
    for l, parameters in enumerate(layers, start=2):
        assert value("weight_norm", layer=str(l)) == pytest.approx(np.linalg.norm(parameters), rel=1e-5)
    gradients = [value("gradient_norm", layer=layer) for layer in ("2", "3")]
    assert math.hypot(*gradients) == pytest.approx(steps["gradient_norm"][-1])

    parts = sum(value("step_part_seconds_total", part=part) for part in ("compute", "wait", "transfer"))
    assert 0 < parts <= value("step_seconds_sum") * 1.01
    gradient_bytes = 4 * NUM_PARAMETERS  # of one top node
    assert value("exchanged_bytes_total", direction="in") == STEPS * gradient_bytes
    assert value("exchanged_bytes_total", direction="out") >= STEPS * gradient_bytes
    assert value("duplicates_dropped_total") == value("shards_reassigned_total") == 0
    assert value("workers", state="computing") == 0

    assert samples["lockstep_jobs", frozenset({("state", "succeeded")})] == 1
    assert samples["lockstep_jobs", frozenset({("state", "running")})] == 0
    assert samples["lockstep_queue_depth", frozenset()] == 0
    submit = frozenset({("method", "lockstep.v1.JobService/Submit"), ("code", "OK")})
    assert samples["lockstep_rpc_seconds_count", submit] == 1


def test_metrics_tell_of_the_workers_and_the_checkpoint_of_a_job_that_is_paused(measured: Measured) -> None:
    job = measured.client.submit(SPEC | {"epochs": 100_000}, data=(X, Y))
    next(update for update in measured.client.watch(job.id, timeout_s=120) if update.job.step > 0)
    label = frozenset({("job_id", job.id)})
    computing = ("lockstep_job_workers", label | {("state", "computing")})
    samples = measured.scrape()
    idle = ("lockstep_job_workers", label | {("state", "idle")})
    assert samples[computing] + samples[idle] == 2  # a slow one of two may have no shards
    assert samples[computing] > 0
    job.pause()
    samples = measured.scrape()
    assert samples[computing] == 0
    assert samples["lockstep_jobs", frozenset({("state", "paused")})] == 1
    checkpoint = max((measured.state_dir / "jobs" / job.id / "checkpoints").iterdir())
    assert samples["lockstep_job_checkpoint_bytes", label] == checkpoint.stat().st_size
    assert samples["lockstep_job_checkpoint_seconds", label] > 0
    assert 0 <= samples["lockstep_job_checkpoint_age_seconds", label] < 60
