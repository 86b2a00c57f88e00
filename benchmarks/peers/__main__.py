"""Measures the others and prints their tables: `benchmarks/peers/run --help`."""

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Callable

from benchmarks import floor
from benchmarks.choices import choice, rounds
from benchmarks.networks import CASES, Case
from benchmarks.table import Table

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
NUM_RANKS = 2


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks/peers/run", description="Measure others on the same networks.")
    parser.add_argument("--only", type=choice("network", CASES), default=list(CASES.values()), metavar="S,M,L,C")
    rounds(parser)
    options = parser.parse_args()
    tables = {case: Table(str(case), "ms a step") for case in options.only}
    for table in tables.values():
        for name in WAYS:
            table.add(name)
    for _ in options.rounds:
        for case, table in tables.items():
            for row, measure in zip(table.rows, WAYS.values(), strict=True):
                row.samples.append(measure(case))
    print("\n\n".join(map(str, tables.values())))


def _bare(case: Case) -> float:
    return floor.measure(case, ENVIRONMENT)


def _torch(case: Case) -> float:
    return _run(["benchmarks.peers.torch_step", case.name])


def _ddp(case: Case) -> float:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    return _run(*(["benchmarks.peers.torch_step", case.name, str(rank), port] for rank in range(NUM_RANKS)))


def _ray(case: Case) -> float:
    return _run(["benchmarks.peers.ray_step", case.name])


def _run(*programs: list[str]) -> float:
    """Run programs side by side. Return the milliseconds of the slowest."""
    environment = os.environ | ENVIRONMENT
    processes = [
        subprocess.Popen([sys.executable, "-m", *program], stdout=subprocess.PIPE, text=True, env=environment)
        for program in programs
    ]
    return max(float(process.communicate()[0]) for process in processes)


WAYS: dict[str, Callable[[Case], float]] = {
    "bare numpy, 2 processes": _bare,
    "PyTorch, 1 process with 2 threads": _torch,
    "PyTorch DDP (gloo), 2 processes": _ddp,
    "Ray's parameter server, 2 workers": _ray,
}

if __name__ == "__main__":
    main()
