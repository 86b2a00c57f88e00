"""What a slow network adds to a step, and how much of that is hidden under the computation.

Two workers are joined to the server by one link: a pair of veth between two network namespaces, held to its rate by
tc's token bucket, and a relay that holds bytes back. The kernel hands the link up to 32 KiB at once, as it does to a
card that cuts packets itself: to cut them for the bucket, and take each in, would cost more time of the two cores than
all else of the transport, and of cores that a real link leaves alone. What the relay and the other end cost remains.

The product is compared with a design that computes the whole gradient, sends it in one piece and gets the parameters
in one piece: the same server and worker, told so by this benchmark, with values that travel in the same type. What is
added is the step's time less the floor's.
"""

import argparse
import dataclasses
import json

from benchmarks import floor
from benchmarks.choices import at_least_1, rounds
from benchmarks.links import Link, link
from benchmarks.networks import CASES
from benchmarks.processes import end, launch, line_of
from benchmarks.spent import Spent
from benchmarks.table import Limit, Row, Table
from lockstep.local import ENVIRONMENT

CASE = "M"
NUM_CPUS = 2
HELP = "what transfer adds to a step on a slow network, against sending after computing in one piece"
DESCRIPTION = (
    "Trains 784-512-256-10 with two workers behind a slow link, made of network namespaces and a relay. Needs root, "
    "ip and tc. Five rounds take about five minutes."
)
QUICK = ("--rounds", "1", "--batch", "256", "--epochs", "1")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to transfer. What one in chunks adds is compared with what the same in one piece does."""

    name: str
    options: tuple[str, ...]
    instead_of: "Way | None" = None


HIDDEN = Limit(0.35, of_ratio=True)  # what may remain of what sending after computing adds
NOTE = "Ratios of those in chunks are to the same type in one piece."
SPENT_BY = ("the workers' rest", "the server", "the relay", "idle, or the kernel's network")  # beside computing
SPENT = (
    "The cores that compute carry both ends of the link and the relay, too: what transfer adds is at least half of "
    "what that takes."
)
LATE = Way("sent after computing, in one piece", ("--wire-dtype", "float32", "--late"))
LATE_ROUNDED = Way("in one piece, as bfloat16", ("--wire-dtype", "bfloat16", "--late"))
WAYS = (
    LATE,
    Way("sent under the computation, in chunks", ("--wire-dtype", "float32"), LATE),
    LATE_ROUNDED,
    Way("in chunks, as bfloat16", ("--wire-dtype", "bfloat16"), LATE_ROUNDED),
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
    added = Table(f"{name}: what transfer adds", "ms a step", note=NOTE)
    ways: dict[Way, tuple[Row, Row]] = {}
    for way in WAYS:
        in_one_piece = ways[way.instead_of][1] if way.instead_of else None
        ways[way] = steps.add(way.name), added.add(way.name, HIDDEN if way.instead_of else None, in_one_piece)
    spent = Table(f"{name}: where the time of {NUM_CPUS} cores goes", "ms a step", note=SPENT)
    computing = spent.add("computing as bare numpy does")
    spent_by = {way: [spent.add(f"{what}, {way.name}") for what in SPENT_BY] for way in WAYS}
    with link(options.rate) as ends:
        for _ in options.rounds:
            bare.samples.append(floor.measure(case, ENVIRONMENT))
            computing.samples.append(NUM_CPUS * bare.samples[-1])
            for way, (row, more) in ways.items():
                step_ms, found = _train(ends, options, way)
                row.samples.append(step_ms)
                more.samples.append(step_ms - bare.samples[-1])
                rest = found.cpu_ms["workers"] - computing.samples[-1]
                parts = (rest, found.cpu_ms["server"], found.cpu_ms["relay"], found.idle_ms(NUM_CPUS))
                for part, ms in zip(spent_by[way], parts, strict=True):
                    part.samples.append(ms)
    return [steps, added, spent]


def _train(ends: Link, options: argparse.Namespace, way: Way) -> tuple[float, Spent]:
    amount = ["--case", CASE, "--batch", options.batch, "--epochs", options.epochs]
    place = ["--host", ends.host, "--delay-s", options.delay_ms / 1000, *way.options]
    process = launch("benchmarks.roles.far_job", *amount, *place, "--", *ends.workers, prefix=ends.server)
    try:
        answer = json.loads(line_of(process))
    finally:
        end(process)
    return answer["step_ms"], Spent(**answer["spent"])
