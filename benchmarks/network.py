"""What a slow network adds to a step, and how much of that is hidden under the computation.

Two workers are joined to the server by one link: a pair of veth between two network namespaces, held to its rate by
tc's token bucket, and a relay that holds bytes back. The product is compared with a design that computes the whole
gradient, sends it in one piece and gets the parameters in one piece: the same server and worker, told so by this
benchmark. What is added is the step's time less the floor's.
"""

import argparse
import dataclasses

from benchmarks import floor
from benchmarks.choices import at_least_1, rounds
from benchmarks.links import Link, link
from benchmarks.networks import CASES
from benchmarks.processes import end, launch, line_of
from benchmarks.table import Limit, Table
from lockstep.local import ENVIRONMENT

CASE = "M"
HELP = "what transfer adds to a step on a slow network, against sending after computing in one piece"
DESCRIPTION = (
    "Trains 784-512-256-10 with two workers behind a slow link, made of network namespaces and a relay. Needs root, "
    "ip and tc. Five rounds take about three minutes."
)
QUICK = ("--rounds", "1", "--batch", "256", "--epochs", "1")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to transfer."""

    name: str
    options: tuple[str, ...]
    limit: Limit | None = None


WAYS = (
    Way("sent after computing, in one piece", ("--wire-dtype", "float32", "--late")),
    Way("sent under the computation, in chunks", ("--wire-dtype", "float32"), Limit(0.35, of_ratio=True)),
    Way("the same as bfloat16", ("--wire-dtype", "bfloat16"), Limit(0.35, of_ratio=True)),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--batch", type=at_least_1, default=4096)
    parser.add_argument("--epochs", type=at_least_1, default=3, help="that are measured, of 32 steps each")
    parser.add_argument("--rate", default="1gbit", help="of the link, as tc writes it (default 1gbit)")
    parser.add_argument("--delay-ms", type=float, default=2.0, help="each way (default 2)")
    rounds(parser)


def measure(options: argparse.Namespace) -> list[Table]:
    """Measure and return the tables."""
    case = dataclasses.replace(CASES[CASE], batch=options.batch, floor_steps=25)
    name = f"{case}, {options.rate} and {options.delay_ms:g} ms each way"
    steps = Table(f"{name}: a step", "ms a step")
    bare = steps.add("bare numpy, 2 processes, no network")
    added = Table(f"{name}: what transfer adds", "ms a step")
    ways = {way: (steps.add(way.name), added.add(way.name, way.limit)) for way in WAYS}
    with link(options.rate) as ends:
        for _ in options.rounds:
            bare.samples.append(floor.measure(case, ENVIRONMENT))
            for way, (row, more) in ways.items():
                row.samples.append(_train(ends, options, way))
                more.samples.append(row.samples[-1] - bare.samples[-1])
    return [steps, added]


def _train(ends: Link, options: argparse.Namespace, way: Way) -> float:
    amount = ["--case", CASE, "--batch", options.batch, "--epochs", options.epochs]
    place = ["--host", ends.host, "--delay-s", options.delay_ms / 1000, *way.options]
    process = launch("benchmarks.roles.far_job", *amount, *place, "--", *ends.workers, prefix=ends.server)
    try:
        return float(line_of(process))
    finally:
        end(process)
