"""Measures what the model of scaling needs: CPU time by step, message and byte, and the time of a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import floor
from benchmarks.networks import CASES, Case
from benchmarks.scaling import Costs, Cpu, num_chunks
from benchmarks.server import Load, Measurement, measure_server
from lockstep.local import ENVIRONMENT

_ALL = ("step_s", "message_s", "byte_s", "update_s")


@dataclass(frozen=True)
class Point:
    """One measurement of a server without computing."""

    num_bytes: int
    workers: int
    found: Measurement


def measure_points(loads: Sequence[tuple[Load, Sequence[int]]]) -> list[Point]:
    """Measure some loads, each with some numbers of workers, which share no memory with the server, as elsewhere."""
    return [
        Point(load.num_bytes, n, measure_server(load, n, shares_memory=False)) for load, counts in loads for n in counts
    ]


def fit(points: Sequence[Point], row_s: dict[str, float]) -> Costs:
    """Return the costs that fit best, relative to what was measured."""
    rows = [_row(p.num_bytes, p.workers) for p in points]
    one = [_row(p.num_bytes, 1) for p in points]
    return Costs(
        server=_fit(_ALL, rows, [p.found.server_cpu_s for p in points]),
        loop=_fit(_ALL, rows, [p.found.server_loop_s for p in points]),
        worker=_fit(("message_s", "byte_s"), one, [p.found.workers_cpu_s / p.workers for p in points]),
        row_s=row_s,
    )


def row_seconds(cases: Sequence[Case] = tuple(CASES.values())) -> dict[str, float]:
    """Return the seconds of one row on one CPU, by network."""
    return {case.name: floor.measure(case, ENVIRONMENT) / 1000 * floor.NUM_PROCESSES / case.batch for case in cases}


def _row(num_bytes: int, peers: int) -> dict[str, float]:
    """The factors of the costs in Cpu.seconds."""
    messages = peers * (2 * num_chunks(num_bytes) + 1)
    return {"step_s": 1.0, "message_s": messages, "byte_s": peers * 2 * num_bytes, "update_s": num_bytes}


def _fit(names: Sequence[str], rows: Sequence[dict[str, float]], seconds: Sequence[float]) -> Cpu:
    """Least squares of relative errors, without negative costs: what would be negative is left out."""
    left = list(names)
    while True:
        matrix = np.array([[row[name] / s for name in left] for row, s in zip(rows, seconds, strict=True)])
        scale = matrix.max(axis=0)
        shares = np.linalg.lstsq(matrix / scale, np.ones(len(seconds)), rcond=None)[0]
        if (shares >= 0).all():
            return Cpu(**{name: float(value) for name, value in zip(left, shares / scale, strict=True)})
        left.pop(int(np.argmin(shares)))
