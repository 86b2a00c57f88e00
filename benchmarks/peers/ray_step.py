"""A step of the synchronous parameter server of Ray's documentation, in numpy. Run as a process; prints milliseconds.

An actor keeps the parameters; two others compute gradients of half of the batch, which the first adds and applies.
"""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from benchmarks import floor
from benchmarks.networks import CASES, Case
from benchmarks.peers.timing import ms_a_step, num_steps

Array = npt.NDArray[Any]
NUM_WORKERS = 2


class ParameterServer:
    """Keeps the parameters and their momentum."""

    def __init__(self, parameters: list[Array]) -> None:
        self._parameters = [values.copy() for values in parameters]
        self._momentum = [np.zeros_like(values) for values in parameters]

    def apply(self, batch: int, *gradients: list[Array]) -> list[Array]:
        """Make one update, and return what came of it."""
        for w, v, *parts in zip(self._parameters, self._momentum, *gradients, strict=True):
            np.multiply(v, 0.9, out=v)
            np.add(v, sum(parts) / batch, out=v)
            np.subtract(w, 0.001 * v, out=w)
        return self._parameters


class Worker:
    """Computes the gradient of its rows."""

    def __init__(self, name: str, num_rows: int) -> None:
        self._shard = floor.shard(CASES[name], num_rows)

    def gradient(self, parameters: list[Array]) -> list[Array]:
        """Return ΔW^l and Δb^l, summed over the rows."""
        self._shard.parameters = list(zip(parameters[::2], parameters[1::2], strict=True))
        self._shard.compute()
        return [values for pair in self._shard.sums for values in pair]


def measure(case: Case) -> float:
    """Measure once."""
    parameters = [values for pair in floor.shard(case, 1).parameters for values in pair]
    server_class: Any = ray.remote(num_cpus=0)(ParameterServer)
    worker_class: Any = ray.remote(num_cpus=1)(Worker)
    server = server_class.remote(parameters)
    workers = [worker_class.remote(case.name, case.batch // NUM_WORKERS) for _ in range(NUM_WORKERS)]
    newest = ray.put(parameters)

    def step() -> None:
        nonlocal newest
        newest = server.apply.remote(case.batch, *[worker.gradient.remote(newest) for worker in workers])
        ray.wait([newest])

    return ms_a_step(step, num_steps(step))


def main() -> None:
    """Measure once, on a Ray of two CPUs."""
    ray.init(address="local", num_cpus=NUM_WORKERS, include_dashboard=False, log_to_driver=False)
    print(measure(CASES[sys.argv[1]]), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
