"""The floor: the arithmetic of a step in bare numpy, with nothing sent and nothing updated.

Two processes side by side, one BLAS thread and half of the batch each, in one shard or several. No step of two workers
can take less.
"""

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.networks import CASES, Case

Array = npt.NDArray[Any]
NUM_PROCESSES = 2
WARMUP_SHARE = 10  # one step in so many is made before the clock starts


class Gradient:
    """Forward and backward pass over fixed rows: relu inside, softmax and cross entropy at the end."""

    def __init__(self, sizes: tuple[int, ...], x: Array, labels: Array, parameters: list[tuple[Array, Array]]) -> None:
        self._x, self._labels, self.parameters = x, labels, parameters
        self._rows = np.arange(len(x))
        self._z = [np.empty((len(x), n), x.dtype) for n in sizes[1:]]
        self._d = [np.empty_like(z) for z in self._z]
        self._active = [np.empty(z.shape, bool) for z in self._z]
        self.sums = [(np.empty_like(w), np.empty_like(b)) for w, b in parameters]

    def compute(self) -> None:
        """Fill `sums` with ΔW^l and Δb^l, summed over the rows."""
        z, last = self._x, len(self._z) - 1
        for l, (w, b) in enumerate(self.parameters):
            m = self._z[l]
            np.matmul(z, w, out=m)
            m += b
            if l < last:
                np.maximum(m, 0, out=m)
            z = m
        d = self._d[last]
        np.subtract(z, z.max(axis=1, keepdims=True), out=d)
        np.exp(d, out=d)
        d /= np.add.reduce(d, axis=1, keepdims=True)
        d[self._rows, self._labels] -= 1
        for l in range(last, -1, -1):
            below = self._z[l - 1] if l else self._x
            np.matmul(below.T, d, out=self.sums[l][0])
            np.add.reduce(d, axis=0, out=self.sums[l][1])
            if l:
                np.matmul(d, self.parameters[l][0].T, out=self._d[l - 1])
                d = self._d[l - 1]
                d *= np.greater(below, 0, out=self._active[l - 1])


def measure(case: Case, environment: dict[str, str], num_shards: int = NUM_PROCESSES) -> float:
    """Return the milliseconds of a step, the slower process counting."""
    amount = map(str, (case.batch, num_shards, case.floor_steps))
    command = [sys.executable, "-m", "benchmarks.floor", case.name, *amount]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | environment)
        for _ in range(NUM_PROCESSES)
    ]
    lines = [_read(process) for process in processes]
    assert lines == ["ready"] * NUM_PROCESSES, lines
    for process in processes:
        _go(process)
    seconds = [float(process.communicate()[0]) for process in processes]
    return 1000 * max(seconds) / case.floor_steps


def _read(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def shard(case: Case, num_rows: int) -> Gradient:
    """Return the computation of so many rows of noise."""
    random = np.random.default_rng(0)
    parameters = [
        (random.normal(0, n_in**-0.5, (n_in, n_out)).astype(np.float32), np.zeros(n_out, np.float32))
        for n_in, n_out in zip(case.sizes, case.sizes[1:], strict=False)
    ]
    x = random.normal(size=(num_rows, case.sizes[0])).astype(np.float32)
    return Gradient(case.sizes, x, random.integers(0, case.sizes[-1], num_rows), parameters)


def main() -> None:
    """Be one of the processes: get ready, wait for a line, compute, print the seconds."""
    case, (batch, num_shards, num_steps) = CASES[sys.argv[1]], map(int, sys.argv[2:])
    gradient = shard(case, batch // num_shards)

    def step() -> None:
        for _ in range(num_shards // NUM_PROCESSES):
            gradient.compute()

    for _ in range(1 + num_steps // WARMUP_SHARE):
        step()
    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    for _ in range(num_steps):
        step()
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    main()
