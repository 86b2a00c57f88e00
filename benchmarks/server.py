"""How much a server can take: real server processes with workers that compute nothing, against plain sockets.

A step of N workers moves N gradients up and N copies of the parameters down, and updates the parameters once. Both the
server and the sockets have the same number of processes on the other end, and all of them share this machine's CPUs.
Workers on the server's machine share memory with it; those elsewhere, which are measured here as well, do not.
"""

import argparse
import itertools
import json
from dataclasses import dataclass

import lockstep
from benchmarks.choices import at_least_1, numbers, rounds
from benchmarks.networks import CASES, LARGE, Case
from benchmarks.processes import Server, end, launch, line_of
from benchmarks.stand_in import StandIn
from benchmarks.table import Limit, Row, Table

HELP = "steps/s and GB/s of a server with 1 to 64 workers that compute nothing, against plain sockets"
DESCRIPTION = (
    "Starts a server and workers that answer every step at once, always with the same values. Reports steps a second, "
    "gigabytes a second, the server's memory, and its CPU time. Five rounds take about ten minutes."
)
QUICK = ("--rounds", "1", "--large", "300,300", "--large-workers", "1,2", "--small-workers", "2", "--steps", "5")
SMALL = CASES["S"].sizes  # 9.6 thousand parameters: one message each way
CHUNK_BYTES = 1 << 20
MAX_PROCESSES = 2  # at the workers' end, which has as many CPUs
WARMUP_STEPS = 3
HALF_OF_RAW = Limit(0.5, of_ratio=True, at_least=True)
WAYS = {True: "", False: " through sockets"}  # with and without memory that the server and its workers share
STEPS_PER_S = {2: Limit(1500, at_least=True), 32: Limit(300, at_least=True)}
BASE_MB, COPIES = 150, {"sgd": 5.5, "adam": 7.0}  # what a server may hold, besides so many times the parameters


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--small-workers", type=numbers, default=[1, 2, 4, 8, 16, 32, 64], help="with 9.6 k parameters")
    add("--large-workers", type=numbers, default=[1, 2, 4, 8], help="with 25 M parameters")
    add("--large", type=numbers, default=list(LARGE), metavar="SIZES", help="n_1 to n_L of the large network")
    add("--steps", type=at_least_1, help="steps of a measurement; by default as many as take some seconds")
    rounds(parser)


def measure(options: argparse.Namespace) -> list[Table]:
    """Measure and return the tables."""
    small = Series(Load(SMALL, options.steps or 8000), "steps/s", options.small_workers)
    large = Series(Load(tuple(options.large), options.steps or 6), "GB/s", options.large_workers)
    memory = Memory(large.load)
    for _ in options.rounds:
        for series in (small, large):
            for workers in series.workers:
                series.measure(workers)
        memory.measure()
    return [small.speed, small.cpu, large.speed, large.cpu, memory.table]


@dataclass(frozen=True)
class Load:
    """A network whose parameters and gradients are sent."""

    sizes: tuple[int, ...]
    steps: int  # of a measurement with one worker

    @property
    def num_bytes(self) -> int:
        """Of the parameters."""
        return 4 * self.case(1, 1).num_parameters

    def steps_of(self, workers: int) -> int:
        """Return how many steps are measured."""
        return max(self.steps // workers, 3)

    def case(self, workers: int, steps: int) -> Case:
        """Return a job of one row a worker and step."""
        return Case("server", self.sizes, workers, Limit(0), steps, warmup_epochs=0, epochs=1, floor_steps=0)

    def __str__(self) -> str:
        return f"{self.num_bytes // 4:,} parameters ({self.num_bytes / 1e6:.3g} MB)"


@dataclass(frozen=True)
class Measurement:
    """What one measurement found."""

    step_s: float
    server_cpu_s: float  # of one step
    server_loop_s: float  # of it, in the thread that has the event loop
    workers_cpu_s: float  # of one step, all workers together
    rss_bytes: float


class Series:
    """One load with several numbers of workers."""

    def __init__(self, load: Load, unit: str, workers: list[int]) -> None:
        self.load = load
        self.workers = workers
        self._in_gb = unit == "GB/s"
        self.speed = Table(f"{load}: the server against plain sockets", unit)
        self.cpu = Table(
            f"{load}: CPU time", "ms a step and worker", note="Of the server; then of all processes at the other end."
        )
        self._rows = {n: self._add(n) for n in workers}

    def _add(self, n: int) -> tuple[Row, dict[bool, tuple[Row, Row, Row]]]:
        words = f"{n} worker{'s' * (n > 1)}"
        raw = self.speed.add(f"plain sockets, {words}")
        limit = (HALF_OF_RAW if n == 2 else None) if self._in_gb else STEPS_PER_S.get(n)
        return raw, {
            shares_memory: (
                self.speed.add(f"server{way}, {words}", limit, raw),
                self.cpu.add(f"server{way}, {words}"),
                self.cpu.add(f"workers{way}, {words}"),
            )
            for shares_memory, way in WAYS.items()
        }

    def measure(self, workers: int) -> None:
        """Measure once."""
        raw, ways = self._rows[workers]
        raw.samples.append(self._speed(measure_sockets(self.load, workers), workers))
        for shares_memory, (product, server_cpu, workers_cpu) in ways.items():
            found = measure_server(self.load, workers, shares_memory=shares_memory)
            product.samples.append(self._speed(found.step_s, workers))
            server_cpu.samples.append(1000 * found.server_cpu_s / workers)
            workers_cpu.samples.append(1000 * found.workers_cpu_s / workers)

    def _speed(self, step_s: float, workers: int) -> float:
        return 2 * workers * self.load.num_bytes / step_s / 1e9 if self._in_gb else 1 / step_s


class Memory:
    """What the server holds while two workers train."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.table = Table(f"{load}, 2 workers: memory of the server", "MB", note="Ratios are to the parameters alone.")
        self._parameters = self.table.add("the parameters")
        mb = load.num_bytes / 1e6
        self._rows = {
            name: self.table.add(f"server with {name}", Limit(round(BASE_MB + copies * mb)))
            for name, copies in COPIES.items()
        }

    def measure(self) -> None:
        """Measure once."""
        self._parameters.samples.append(self._load.num_bytes / 1e6)
        for optimizer, row in self._rows.items():
            row.samples.append(measure_server(self._load, 2, optimizer).rss_bytes / 1e6)


def measure_server(load: Load, workers: int, optimizer: str = "sgd", *, shares_memory: bool = True) -> Measurement:
    """Run a job on a server of its own."""
    steps = load.steps_of(workers)
    case = load.case(workers, WARMUP_STEPS + steps + 1)
    spec = case.spec(workers=workers, shards=workers, data="none.npz")
    if optimizer == "adam":
        spec["optimizer"] = {"adam": {}}
    with (
        Server(shares_memory=shares_memory) as server,
        StandIn(server.address, worker_slots=workers, num_rows=case.num_rows),
        lockstep.Client(server.address) as client,
    ):
        job = client.submit(spec)
        place = ["--server", server.address, "--server-pid", server.pid, "--job", job.id]
        amount = ["--warmup", WARMUP_STEPS, "--steps", steps]
        processes = [
            launch("benchmarks.roles.synthetic", *place, *amount, "--first", first, "--workers", count)
            for first, count in shares(workers)
        ]
        answers = [json.loads(line_of(process)) for process in processes]
        for process in processes:
            end(process)
        job.wait()
    found = [answer for answer in answers if answer is not None]  # what had no part in the last steps has none
    first = found[0]
    return Measurement(
        step_s=first["seconds"] / first["steps"],
        server_cpu_s=first["server_cpu_s"] / first["steps"],
        server_loop_s=first["server_loop_s"] / first["steps"],
        workers_cpu_s=sum(one["cpu_s"] / one["steps"] for one in found),
        rss_bytes=first["server_rss_bytes"],
    )


def measure_sockets(load: Load, workers: int) -> float:
    """Return the seconds of a step in which plain sockets carry the same bytes."""
    chunk_bytes = min(CHUNK_BYTES, load.num_bytes)
    num_chunks = -(-load.num_bytes // chunk_bytes)
    listener = launch("benchmarks.roles.loopback", "--num-connections", workers, "--chunk-bytes", chunk_bytes)
    port = line_of(listener)
    steps = load.steps_of(workers)
    amount = ["--num-chunks", num_chunks, "--warmup", WARMUP_STEPS, "--steps", steps, "--chunk-bytes", chunk_bytes]
    processes = [
        launch("benchmarks.roles.loopback", "--port", port, *amount, "--num-connections", count)
        for _, count in shares(workers)
    ]
    for process in processes:
        line_of(process)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seconds = max(float(line_of(process)) for process in processes)
    for process in (*processes, listener):
        end(process)
    return seconds / steps


def shares(workers: int) -> list[tuple[int, int]]:
    """Return the first worker of each process, and how many it has."""
    processes = min(workers, MAX_PROCESSES)
    bounds = [workers * i // processes for i in range(processes + 1)]
    return [(lo, hi - lo) for lo, hi in itertools.pairwise(bounds)]
