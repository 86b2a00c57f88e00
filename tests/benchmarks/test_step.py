"""The benchmark as a person runs it."""

import subprocess
import sys

import pytest


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.cluster
def test_it_measures_the_product_and_the_floor() -> None:
    answer = run("step", "--only", "S", "--rounds", "1")
    assert answer.returncode == 0, answer.stderr
    machine, _, table = answer.stdout.partition("\n\n")
    assert [line.split()[0] for line in machine.splitlines()] == ["CPU", "numpy", "system"]
    title, _, *rows = table.splitlines()
    assert title == "S: 64-128-10, batch 256, ms a step"
    names = ("bare numpy, 2 processes", "2 workers with 1 CPU", "1 worker with 2 CPUs")
    assert [row.startswith(name) for row, name in zip(rows, names, strict=True)] == [True] * 3
    medians = [float(row.removeprefix(name).split()[0]) for row, name in zip(rows, names, strict=True)]
    assert 0.01 < medians[0] < min(medians[1:]), "no step beats its own arithmetic"


def test_help_names_the_networks() -> None:
    answer = run("step", "--help")
    assert answer.returncode == 0
    for name in ("64-128-10", "784-512-256-10", "1024-4096-4096-1000"):
        assert name in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", "--only", "S,XL"), "no such network: XL; there are S, M, L"),
        (("step", "--rounds", "0"), "must be at least 1, got 0"),
        ((), "BENCHMARK"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2
    assert message in answer.stderr
