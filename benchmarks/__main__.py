"""The command line of the benchmarks."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks import data, machine, network, page, scaling_page, server, start, step
from benchmarks.choices import choice
from benchmarks.table import Table


class Benchmark(Protocol):
    """What the module of a benchmark has."""

    HELP: str
    DESCRIPTION: str

    @property
    def QUICK(self) -> Sequence[str]:
        """Options that make it as short as can be; its numbers then mean nothing."""

    def add_options(self, parser: argparse.ArgumentParser, /) -> None:
        """Add its options."""

    def measure(self, options: argparse.Namespace, /) -> list[Table]:
        """Measure and return the tables."""


BENCHMARKS: dict[str, Benchmark] = {"step": step, "server": server, "network": network, "start": start, "data": data}


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Lockstep on this machine. Nothing else should be running on it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="BENCHMARK")
    for name, benchmark in BENCHMARKS.items():
        one = commands.add_parser(name, help=benchmark.HELP, description=benchmark.DESCRIPTION)
        benchmark.add_options(one)
        one.set_defaults(run=_run_one, benchmark=benchmark)
    every = commands.add_parser(
        "all", help="all of them, as a page", description="Runs the benchmarks, and writes them down."
    )
    every.add_argument(
        "--only", type=choice("benchmark", {name: name for name in BENCHMARKS}), default=list(BENCHMARKS)
    )
    every.add_argument("--rounds", default="5", help="of each (default 5)")
    every.add_argument("--quick", action="store_true", help="as short as can be; its numbers mean nothing")
    every.add_argument(
        "--markdown", nargs="?", type=Path, const=page.PERFORMANCE, metavar="FILE", help=f"write {page.PERFORMANCE}"
    )
    every.set_defaults(run=_run_all)
    scaling = commands.add_parser("scaling", help=scaling_page.HELP, description=scaling_page.HELP)
    scaling_page.add_options(scaling)
    scaling.set_defaults(run=lambda options: scaling_page.run(options, _command()))
    options = parser.parse_args()
    options.run(options)


def _run_one(options: argparse.Namespace) -> None:
    print(machine.describe(), flush=True)
    for table in options.benchmark.measure(options):
        print(f"\n{table}")


def _run_all(options: argparse.Namespace) -> None:
    sections = []
    for name in options.only:
        print(name, file=sys.stderr, flush=True)
        benchmark = BENCHMARKS[name]
        parser = argparse.ArgumentParser()
        benchmark.add_options(parser)
        arguments = parser.parse_args(benchmark.QUICK if options.quick else ("--rounds", options.rounds))
        sections.append(page.Section(name, benchmark.HELP, benchmark.measure(arguments)))
    if options.markdown is None:
        print("\n\n".join([machine.describe(), *(str(table) for section in sections for table in section.tables)]))
    else:
        options.markdown.write_text(page.performance(_command(), sections))


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


if __name__ == "__main__":
    main()
