"""The benchmarks as a person runs them. What they measure here means nothing; that they measure all of it does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


def tables_of(answer: "subprocess.CompletedProcess[str]") -> list[tuple[str, list[str], list[float]]]:
    """The titles, names and medians of what was printed."""
    assert answer.returncode == 0, answer.stderr
    machine, *tables = answer.stdout.strip().split("\n\n")
    assert [line.split()[0] for line in machine.splitlines()] == ["CPU", "numpy", "system"]
    found = []
    for table in tables:
        title, _, *rows = table.splitlines()
        cells = [re.split(r"\s{2,}", row) for row in rows]
        names, medians = zip(*[(row[0], float(row[1])) for row in cells if len(row) > 1], strict=True)
        found.append((title, list(names), list(medians)))
    return found


@pytest.mark.cluster
def test_steps_are_measured_against_the_floor_with_few_and_many_shards() -> None:
    tables = tables_of(run("step", "--only", "S", "--rounds", "1"))
    (title, names, steps), (spent_title, spent_names, spent), (more_title, more_names, more) = tables
    assert title == "S: 64-128-10, batch 256, ms a step"
    assert more_title == "S with 8 shards instead of 2, ms a step"
    assert names == more_names == ["bare numpy, 2 processes", "2 workers with 1 CPU", "1 worker with 2 CPUs"]
    for floor, *product in (steps, more):
        assert 0.01 < floor < min(product), "no step beats its own arithmetic"
    assert spent_title == "S: where the time of 2 cores goes, ms a step"
    clusters = [(spent_names[i : i + 3], spent[i : i + 3]) for i in (1, 4)]
    for (cluster_names, rest), cluster, step in zip(clusters, names[1:], steps[1:], strict=True):
        assert cluster_names == [f"the workers' rest, {cluster}", f"the server, {cluster}", f"idle, {cluster}"]
        assert step / 2 < spent[0] + sum(rest) < 8 * step, "both cores' time, of some of these steps"
        assert rest[1] > 0


def test_the_server_is_measured_against_plain_sockets() -> None:
    small = ("--small-workers", "1,2", "--large", "300,300", "--large-workers", "2", "--steps", "8")
    tables = tables_of(run("server", "--rounds", "1", *small))
    assert [title.rpartition(", ")[2] for title, _, _ in tables] == [
        "steps/s", "ms a step and worker", "GB/s", "ms a step and worker", "MB",
    ]  # fmt: skip
    (_, speeds, _), (_, costs, _), _, _, (_, memories, megabytes) = tables
    ways = ("", " through sockets")
    products, ends = [f"server{way}" for way in ways], [f"{end}{way}" for way in ways for end in ("server", "workers")]
    counts = ("1 worker", "2 workers")
    assert speeds == [f"{what}, {n}" for n in counts for what in ("plain sockets", *products)]
    assert costs == [f"{what}, {n}" for n in counts for what in ends]
    assert memories == ["the parameters", "server with sgd", "server with adam"]
    assert megabytes[0] == pytest.approx(4 * (300 * 300 + 300) / 1e6, rel=0.01)
    assert all(median > 0 for _, _, medians in tables for median in medians)


@pytest.mark.netns
def test_a_slow_network_is_measured_with_and_without_overlap() -> None:
    small = ("--batch", "64", "--epochs", "1", "--rate", "500mbit", "--delay-ms", "1")
    (steps, names, (floor, *medians)), (added, _, more), (_, used, spent) = tables_of(
        run("network", "--rounds", "1", *small)
    )
    assert steps == "M: 784-512-256-10, batch 64, 500mbit and 1 ms each way: a step, ms a step"
    assert added == "M: 784-512-256-10, batch 64, 500mbit and 1 ms each way: what transfer adds, ms a step"
    ways = "sent after computing, in one piece", "sent under the computation, in chunks"
    assert names[1:] == [*ways, "in one piece, as bfloat16", "in chunks, as bfloat16"]
    assert more == pytest.approx([median - floor for median in medians], abs=0.1)
    one_way_ms = 2 * 32 * (784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10) / 500e3  # 2 workers, 32 bits, 500 Mbit/s
    assert medians[0] > 1.9 * one_way_ms, "first up, then down"
    assert medians[1] > 0.95 * one_way_ms, "not faster than the link"
    assert medians[2] > 1.9 * one_way_ms / 2
    assert len(used) == len(spent) == 1 + 4 * len(medians)
    for i, step in enumerate(medians):
        rest, server, relay, idle = spent[1 + 4 * i : 5 + 4 * i]
        assert used[2 + 4 * i] == f"the server, {names[1 + i]}"
        assert min(server, relay) > 0
        assert step / 2 < spent[0] + rest + server + relay + idle < 8 * step, "both cores' time, of some of these steps"


@pytest.mark.cluster
def test_loading_is_measured_against_reading_alone() -> None:
    loading, rows = tables_of(run("data", "--rounds", "1", "--megabytes", "1", "--steps", "2"))
    assert loading[:2] == ("1 MB of Parquet, s", ["pyarrow.dataset reads it", "loaded into shards"])
    assert rows[1] == ["from rows as they lie", "from permuted rows"]


@pytest.mark.cluster
def test_starts_are_measured_and_written_down(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    answer = run("all", "--only", "start", "--quick", "--markdown", str(page))
    assert answer.returncode == 0, answer.stderr
    text = page.read_text()
    assert "`python -m benchmarks all --only start --quick --markdown" in text
    assert "## start: seconds until" in text
    for name in ("import lockstep", "LocalCluster is ready", "submit to the first step, warm"):
        assert re.search(rf"^\| {name} \| \d", text, re.MULTILINE)


def test_help_names_the_networks() -> None:
    answer = run("step", "--help")
    assert answer.returncode == 0
    for name in ("64-128-10", "784-512-256-10", "1024-4096-4096-1000"):
        assert name in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", "--only", "S,XL"), "no such network: XL; there are S, M, L, C"),
        (("step", "--rounds", "0"), "must be at least 1, got 0"),
        (("all", "--only", "nothing"), "no such benchmark: nothing; there are step, server, network, start, data"),
        ((), "BENCHMARK"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2
    assert message in answer.stderr
