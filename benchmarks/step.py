"""One step of training: the product on a local cluster, against the floor.

A round measures the floor, then a cluster of two workers with one CPU, then one of one worker with two, so that a
machine that slows down slows down all. A job's number is the wall time of its later epochs, by the server's clock,
over their steps: updates, transport and the work between two epochs are in it, start and warm-up are not.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import lockstep
from benchmarks import floor, machine
from benchmarks.networks import Case
from benchmarks.table import Row, Table
from lockstep.local import ENVIRONMENT

CLUSTERS = ((2, 1), (1, 2))  # workers, CPUs of each


def run(cases: list[Case], rounds: int) -> None:
    """Measure and print."""
    print(machine.describe(), flush=True)
    tables = {case: _table(case) for case in cases}
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmarks-") as directory:
        for case in cases:
            write_data(case, Path(directory))
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
            _measure(tables, Path(directory))
    for table in tables.values():
        print(f"\n{table}")


def _table(case: Case) -> Table:
    table = Table(str(case))
    table.add("bare numpy, 2 processes")
    for workers, cpus in CLUSTERS:
        table.add(f"{workers} worker{'s' * (workers > 1)} with {cpus} CPU{'s' * (cpus > 1)}", case.limit_ms)
    return table


def _measure(tables: dict[Case, Table], data_root: Path) -> None:
    for case, table in tables.items():
        table.rows[0].samples_ms.append(floor.measure(case, ENVIRONMENT))
    for index, (workers, cpus) in enumerate(CLUSTERS, start=1):
        with lockstep.LocalCluster(workers, cpus_per_worker=cpus, data_root=data_root) as client:
            for case, table in tables.items():
                _train(client, case, workers, table.rows[index])


def _train(client: lockstep.Client, case: Case, workers: int, row: Row) -> None:
    job = client.submit(spec_of(case, workers)).wait()
    later_s = job.history.epochs["duration_s"][case.warmup_epochs :]
    row.samples_ms.append(1000 * sum(later_s) / (len(later_s) * case.steps_per_epoch))
    job.delete()


def spec_of(case: Case, workers: int) -> dict[str, Any]:
    """Return the job of a case: two shards, one for each CPU."""
    *hidden, outputs = case.sizes[1:]
    layers = [{"units": units, "activation": "relu"} for units in hidden]
    return {
        "name": f"benchmark-{case.name}",
        "network": {"inputs": case.sizes[0], "layers": [*layers, {"units": outputs, "activation": "softmax"}]},
        "loss": "cross_entropy",
        "optimizer": {"sgd": {"learning_rate": 0.001, "momentum": 0.9}},
        "batch_size": case.batch,
        "epochs": case.warmup_epochs + case.epochs,
        "shards": 2,
        "workers": {"min": workers, "max": workers},
        "data": {"path": f"{case.name}.npz"},
    }


def write_data(case: Case, directory: Path) -> None:
    """Write rows of noise: what they say is of no matter to the time they take."""
    random = np.random.default_rng(0)
    x = random.standard_normal((case.num_rows, case.sizes[0]), np.float32)
    np.savez(directory / f"{case.name}.npz", x=x, y=random.integers(0, case.sizes[-1], case.num_rows))
