"""One step of training: the product on a local cluster, against the floor.

A round measures the floor, then a cluster of two workers with one CPU, then one of one worker with two, each with one
shard and with four for every CPU. A job's number is the wall time of its later epochs, by the server's clock, over
their steps: updates, transport and the work between two epochs are in it, start and warm-up are not. Of the cores'
time in these steps a further table says where it went.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

import lockstep
from benchmarks import floor
from benchmarks.choices import choice, rounds
from benchmarks.networks import CASES, Case
from benchmarks.processes import children, command
from benchmarks.spent import Spent, watch
from benchmarks.table import Limit, Table
from lockstep.local import ENVIRONMENT

HELP = "milliseconds of one training step, against the bare numpy computation of the same step"
DESCRIPTION = (
    "Trains on local clusters of two workers with one CPU and of one worker with two, and computes the same gradients "
    "in bare numpy (two processes, one BLAS thread and half of the batch each, nothing sent). All are measured in "
    "turns, once a round. Five rounds of all networks take about twenty minutes. Networks: "
    + "; ".join(map(str, CASES.values()))
    + "."
)
QUICK = ("--only", "S", "--rounds", "1")
CLUSTERS = ((2, 1), (1, 2))  # workers, CPUs of each
NUM_CPUS = 2
SHARDS = (NUM_CPUS, 4 * NUM_CPUS)
SERVER, FLEET = "lockstep_server.main", "lockstep_worker.fleet_main"  # the processes of a local cluster
SPENT_BY = ("the workers' rest", "the server", "idle")  # the cores' time that is not computing
SPENT = (
    "The workers' rest is their transport, sums and Python, what Ray does, and what computing takes longer beside it."
)
FOUR_TIMES = Limit(1.1, of_ratio=True)  # what more shards may cost


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--only", type=choice("network", CASES), default=list(CASES.values()), metavar="S,M,L,C")
    rounds(parser)


def measure(options: argparse.Namespace) -> list[Table]:
    """Measure and return the tables: for every network one, and one of what more shards cost."""
    cases = {case: Rows(case) for case in options.only}
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmarks-") as directory:
        for case in cases:
            write_data(case, Path(directory))
        for _ in options.rounds:
            _round(cases, Path(directory))
    return [table for rows in cases.values() for table in (rows.steps, rows.spent, rows.shards)]


class Rows:
    """The tables of one network, and their rows by what they show."""

    def __init__(self, case: Case) -> None:
        few, many = SHARDS
        self.steps = Table(str(case), "ms a step")
        self.floors = {few: self.steps.add("bare numpy, 2 processes")}
        self.jobs = {(cluster, few): self.steps.add(name_of(cluster), case.limit) for cluster in CLUSTERS}
        self.spent = Table(f"{case.name}: where the time of {NUM_CPUS} cores goes", "ms a step", note=SPENT)
        self.computing = self.spent.add("computing as bare numpy does")
        self._spent = {
            cluster: [self.spent.add(f"{what}, {name_of(cluster)}") for what in SPENT_BY] for cluster in CLUSTERS
        }
        self.shards = Table(
            f"{case.name} with {many} shards instead of {few}",
            "ms a step",
            note=f"Ratios are to the same with {few} shards. A product of fewer rows is slower, in bare numpy too.",
        )
        self.floors[many] = self.shards.add("bare numpy, 2 processes", baseline=self.floors[few])
        for cluster in CLUSTERS:
            baseline = self.jobs[cluster, few]
            self.jobs[cluster, many] = self.shards.add(name_of(cluster), FOUR_TIMES, baseline)

    def spent_by(self, cluster: tuple[int, int], spent: Spent) -> None:
        """Take in what a step takes of the cores, after the arithmetic alone."""
        beyond = spent.cpu_ms[FLEET] - self.computing.samples[-1]
        for row, ms in zip(self._spent[cluster], (beyond, spent.cpu_ms[SERVER], spent.idle_ms(NUM_CPUS)), strict=True):
            row.samples.append(ms)


def name_of(cluster: tuple[int, int]) -> str:
    """Return a cluster in words."""
    workers, cpus = cluster
    return f"{workers} worker{'s' * (workers > 1)} with {cpus} CPU{'s' * (cpus > 1)}"


def _round(cases: dict[Case, Rows], data_root: Path) -> None:
    for case, rows in cases.items():
        for shards, row in rows.floors.items():
            row.samples.append(floor.measure(case, ENVIRONMENT, shards))
        rows.computing.samples.append(NUM_CPUS * rows.floors[SHARDS[0]].samples[-1])
    for cluster in CLUSTERS:
        workers, cpus = cluster
        with lockstep.LocalCluster(workers, cpus_per_worker=cpus, data_root=data_root) as client:
            for case, rows in cases.items():
                for shards in SHARDS:
                    ms, spent = _train(client, case, workers, shards)
                    rows.jobs[cluster, shards].samples.append(ms)
                    if shards == SHARDS[0]:
                        rows.spent_by(cluster, spent)


def _train(client: lockstep.Client, case: Case, workers: int, shards: int) -> tuple[float, Spent]:
    job = client.submit(case.spec(workers=workers, shards=shards, data=f"{case.name}.npz"))
    mine = {module: [pid] for pid in children()[os.getpid()] for module in (SERVER, FLEET) if module in command(pid)}
    spent = watch(client.watch(job.id), case, mine)
    ms = ms_a_step(job.wait(), case)
    job.delete()
    return ms, spent


def ms_a_step(job: lockstep.Job, case: Case) -> float:
    """Return the milliseconds of a step of a job that has ended, without its warm-up."""
    later_s: list[float] = job.history.epochs["duration_s"][case.warmup_epochs :]
    return 1000 * sum(later_s) / (len(later_s) * case.steps_per_epoch)


def write_data(case: Case, directory: Path) -> None:
    """Write rows of noise: what they say is of no matter to the time they take."""
    random = np.random.default_rng(0)
    x = random.standard_normal((case.num_rows, case.sizes[0]), np.float32)
    np.savez(directory / f"{case.name}.npz", x=x, y=random.integers(0, case.sizes[-1], case.num_rows))
