"""How long a step takes with 1 to 1,000 workers, from what a byte and a message cost: a model, not a measurement.

A step has three parts. Every worker computes its share of the rows. The gradients go up and the parameters come down,
chunk by chunk, in both directions at once; the slowest of all that they pass sets the pace:

    the worker     its link; its CPU, 2 messages a chunk and 2 bytes a byte of the parameters
    the server     its link, N times as much; its event loop, one thread: N times as much, and the update

Some of it is hidden under the computation, which has three parts of equal length: forward through the layers, back, and
the gradients, layer 2 first. With these the exchange begins. The next step begins when layer 2 has come, and goes
through the last layer when all have. What is left is added to the computation, with one round trip.
"""

import dataclasses
import math
from dataclasses import dataclass

from benchmarks.networks import Case

CHUNK_BYTES = 1 << 20
WORKER_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
HALF = 0.5


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of one process: for a step, a message in either direction, a byte, a byte of the parameters."""

    step_s: float = 0.0
    message_s: float = 0.0
    byte_s: float = 0.0
    update_s: float = 0.0

    def seconds(self, num_bytes: int, peers: int) -> float:
        """Return what a step costs that sends the parameters to `peers` and gets as much from each."""
        messages = 2 * num_chunks(num_bytes) + 1  # each chunk up and down, and the word to begin
        return (
            self.step_s + self.update_s * num_bytes + peers * (self.message_s * messages + self.byte_s * 2 * num_bytes)
        )


@dataclass(frozen=True)
class Costs:
    """What was measured of one machine."""

    server: Cpu
    loop: Cpu  # of the server, in the thread that has its event loop
    worker: Cpu
    row_s: dict[str, float]  # by network: one row on one CPU, forward and backward


@dataclass(frozen=True)
class Cluster:
    """Machines with one link each: one for the server, one for each worker."""

    link_bytes_per_s: float
    round_trip_s: float = 100e-6  # within one building
    cpus_per_worker: int = 1


@dataclass(frozen=True)
class Prediction:
    """A step with so many workers."""

    workers: int
    compute_s: float
    step_s: float
    slowest: str  # what sets the pace of the exchange

    @property
    def waits_for(self) -> str:
        """What takes most of the step."""
        return self.slowest if self.compute_s < HALF * self.step_s else "computing"


def num_chunks(num_bytes: int) -> int:
    """Return how many messages carry the parameters."""
    return math.ceil(num_bytes / CHUNK_BYTES)


def predict(case: Case, workers: int, costs: Costs, cluster: Cluster) -> Prediction:
    """Return the step of a network with so many workers."""
    num_bytes = 4 * case.num_parameters
    compute_s = case.batch * costs.row_s[case.name] / (workers * cluster.cpus_per_worker)
    paces = {
        "the worker's link": num_bytes / cluster.link_bytes_per_s,
        "the worker's CPU": costs.worker.seconds(num_bytes, 1),
        "the server's link": workers * num_bytes / cluster.link_bytes_per_s,
        "the server's event loop": costs.loop.seconds(num_bytes, workers),
    }
    slowest = max(paces, key=lambda name: paces[name])
    first, last = (n_in * n_out / case.num_parameters for n_in, n_out in (case.sizes[:2], case.sizes[-2:]))
    third_s, exchange_s = compute_s / 3, paces[slowest]
    exchanged_s = cluster.round_trip_s + max(exchange_s * first + third_s, exchange_s + third_s * last)
    step_s = third_s + max(2 * third_s, exchanged_s)
    return Prediction(workers, compute_s, step_s, slowest)


def predict_here(num_bytes: int, workers: int, costs: Costs, num_cpus: int) -> float:
    """Return the step of workers that compute nothing, when they and the server share this machine's CPUs.

    However many these are, the way of one chunk there and back is no shorter than what both ends do for it.
    """
    total_s = costs.server.seconds(num_bytes, workers) + workers * costs.worker.seconds(num_bytes, 1)
    chunk = min(num_bytes, CHUNK_BYTES)
    there_and_back_s = costs.server.seconds(chunk, 1) + costs.worker.seconds(chunk, 1)
    return max(costs.loop.seconds(num_bytes, workers), total_s / num_cpus, there_and_back_s)


def useful_workers(case: Case, costs: Costs, cluster: Cluster) -> int:
    """Return the most workers, up to 1,000, of which each is still worth half of one alone."""
    alone_s = predict(case, 1, costs, cluster).step_s

    def worth(workers: int) -> bool:
        return alone_s / predict(case, workers, costs, cluster).step_s >= HALF * workers

    return max(n for n in range(1, WORKER_COUNTS[-1] + 1) if worth(n))


def useful_batch(case: Case, workers: int, costs: Costs, cluster: Cluster) -> int:
    """Return the fewest rows a step, a power of 2 for each worker, with which it computes for half of the time."""
    rows = 1
    while True:
        found = predict(dataclasses.replace(case, batch=rows * workers), workers, costs, cluster)
        if found.compute_s >= HALF * found.step_s:
            return rows * workers
        rows *= 2
