"""The command line of the benchmarks."""

import argparse

from benchmarks.networks import CASES, Case


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Lockstep on this machine. Nothing else should be running on it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="BENCHMARK")
    step = commands.add_parser(
        "step",
        help="milliseconds of one training step, against the bare numpy computation of the same step",
        description="Trains on local clusters of two workers with one CPU and of one worker with two, and computes the "
        "same gradients in bare numpy (two processes, one BLAS thread and half of the batch each, nothing sent). All "
        "are measured in turns, once a round. Five rounds of all networks take about seven minutes.",
        epilog="Networks: " + "; ".join(map(str, CASES.values())) + ".",
    )
    step.add_argument("--only", type=_cases, default=list(CASES.values()), metavar="NAMES", help="such as S,M")
    step.add_argument("--rounds", type=_rounds, default=5, help="how often each is measured (default 5)")
    arguments = parser.parse_args()

    from benchmarks import step as step_benchmark  # after the command line: --help needs none of it

    step_benchmark.run(arguments.only, arguments.rounds)


def _cases(names: str) -> list[Case]:
    unknown = [name for name in names.split(",") if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such network: {', '.join(unknown)}; there are {', '.join(CASES)}")
    return [CASES[name] for name in names.split(",")]


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    main()
