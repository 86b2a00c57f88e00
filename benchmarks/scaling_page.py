"""Measures, predicts, and writes docs/scaling.md."""

import argparse
import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import costs, machine
from benchmarks.choices import at_least_1, rounds
from benchmarks.costs import Point
from benchmarks.networks import CASES, LARGE, Case
from benchmarks.scaling import (
    WORKER_COUNTS,
    Cluster,
    Costs,
    Cpu,
    predict,
    predict_here,
    useful_batch,
    useful_workers,
)
from benchmarks.server import SMALL, Load

SCALING = Path("docs/scaling.md")
HELP = "what a step takes with 1 to 1,000 workers, predicted from what a byte and a message cost here"
LINKS = {"10 Gbit/s": 10e9 / 8, "100 Gbit/s": 100e9 / 8}
NETWORKS = ("M", "L")
MEDIUM = (1000, 1000)  # 4 MB
MANY_WORKERS = 32  # for which a batch is recommended
NUM_CPUS = 2  # of the machine that measures


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--markdown", nargs="?", type=Path, const=SCALING, metavar="FILE", help=f"write {SCALING}")
    parser.add_argument("--steps", type=at_least_1, help="of a measurement; by default as many as take some seconds")
    rounds(parser)


def run(options: argparse.Namespace, command: str) -> None:
    """Measure, and print the page or write it."""
    steps = options.steps
    loads = [
        (Load(SMALL, steps or 2000), (1, 2, 4, 8, 16, 32)),
        (Load(MEDIUM, steps or 100), (1, 2, 4, 8)),
        (Load(LARGE, steps or 6), (1, 2, 4)),
    ]
    points, row_s = [], []
    for _ in options.rounds:
        points.append(costs.measure_points(loads))
        row_s.append(costs.row_seconds())
    text = page(command, [p for some in points for p in some], middle(row_s))
    if options.markdown is None:
        print(text)
    else:
        options.markdown.write_text(text)


def middle(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def page(command: str, points: Sequence[Point], row_s: dict[str, float]) -> str:
    """Return the page."""
    all_costs = costs.fit(points, row_s)
    date = datetime.datetime.now(datetime.UTC).date()
    parts = [
        "# Scaling",
        "What a step takes with up to 1,000 workers. Nobody has measured that: a small model\n"
        "([`scaling.py`](../benchmarks/scaling.py)) predicts it from what a byte and a message cost on one machine.\n"
        "Every worker and the server have a machine and a link of their own, a worker one CPU, and shards enough.",
        f"Costs measured on {date} by `{command}`, with nothing else running:",
        f"```\n{machine.describe()}\n```",
        _costs(all_costs),
        "## The model against what can be measured\n\n"
        "The server and workers that compute nothing, all on the CPUs of this one machine; times are medians. The\n"
        "costs above are fitted to CPU times, the model is held to the time of a step.",
        _check(points, all_costs),
        *(_network(CASES[name], all_costs) for name in NETWORKS),
    ]
    return "\n\n".join(parts) + "\n"


def _costs(found: Costs) -> str:
    def cells(name: str, cpu: Cpu) -> tuple[str, ...]:
        numbers = (1e6 * cpu.step_s, 1e6 * cpu.message_s, 1e9 * cpu.byte_s, 1e9 * cpu.update_s)
        return name, *(f"{number:.3g}" for number in numbers)

    head = ("CPU time", "µs a step", "µs a message", "s a GB", "s a GB of parameters (update)")
    rows = "; ".join(f"{name} {1e6 * row_s:.3g} µs" for name, row_s in found.row_s.items())
    table = _table(
        head, [cells("server", found.server), cells("of it, its event loop", found.loop), cells("worker", found.worker)]
    )
    return f"{table}\n\nOne row of a network on one CPU, forward and backward: {rows}."


def _check(points: Sequence[Point], found: Costs) -> str:
    measured: dict[tuple[int, int], list[float]] = {}
    for point in points:
        measured.setdefault((point.num_bytes, point.workers), []).append(point.found.step_s)
    lines = []
    for (num_bytes, workers), seconds in measured.items():
        step_s = statistics.median(seconds)
        model_s = predict_here(num_bytes, workers, found, NUM_CPUS)
        numbers = (f"{1000 * step_s:.3g}", f"{1000 * model_s:.3g}", f"{model_s / step_s:.2f}")
        lines.append((f"{num_bytes / 1e6:.3g} MB, {workers} workers", *numbers))
    return _table(("", "measured, ms a step", "predicted", "ratio"), lines)


def _network(case: Case, found: Costs) -> str:
    clusters = {name: Cluster(rate) for name, rate in LINKS.items()}
    lines = []
    for n in WORKER_COUNTS:
        predictions = [predict(case, n, found, cluster) for cluster in clusters.values()]
        cells = [(f"{1000 * p.step_s:.3g}", p.waits_for) for p in predictions]
        lines.append((str(n), f"{1000 * predictions[0].compute_s:.3g}", *(cell for pair in cells for cell in pair)))
    head = ("workers", "computing, ms", *(text for name in clusters for text in (f"step at {name}, ms", "waits for")))
    advice = "\n".join(_advice(case, name, found, cluster) for name, cluster in clusters.items())
    return f"## {case}\n\n{_table(head, lines)}\n\n{advice}"


def _advice(case: Case, link: str, found: Costs, cluster: Cluster) -> str:
    most = useful_workers(case, found, cluster)
    slowest = predict(case, most, found, cluster).slowest
    batch = useful_batch(case, MANY_WORKERS, found, cluster)
    return (
        f"- At {link}, up to {most:,} workers are each worth half of one alone or more; what they wait for is\n"
        f"  {slowest}. Set `workers.max = {most}`. For {MANY_WORKERS} workers to compute half of the time, set\n"
        f"  `batch_size = {batch}` or more."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
