"""Plays many seeds, and tells the shrunk story of each that fails."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from tests.simulator.run import Report
from tests.simulator.shrink import describe, play

TELL_S = 10.0  # between two lines of progress


def main() -> None:
    """Exit with 1 if a run failed."""
    options = _parser().parse_args()
    seeds = range(options.begin, options.begin + options.seeds) if options.seed is None else [options.seed]
    begun = told = time.monotonic()
    num_failed = num_faults = num_steps = 0
    virtual_s = 0.0
    with _pool(options.processes) as play_all:
        for done, report in enumerate(play_all(seeds), start=1):
            num_faults += report.num_faults
            num_steps += report.num_steps
            virtual_s += report.virtual_s
            if report.failed:
                num_failed += 1
                print(describe(report), flush=True)
            elif options.seed is not None:
                print(describe(report))
            if time.monotonic() - told > TELL_S or done == len(seeds):
                told = time.monotonic()
                print(
                    f"{done} of {len(seeds)} runs, {num_failed} failed; {num_faults} faults, {num_steps} steps, "
                    f"{virtual_s / 3600:.1f} simulated hours in {told - begun:.0f} s",
                    file=sys.stderr,
                )
    sys.exit(1 if num_failed else 0)


@contextmanager
def _pool(processes: int) -> Iterator[Callable[[Sequence[int]], Iterator[Report]]]:
    """What plays seeds, here or in so many processes."""
    if processes == 1:
        yield lambda seeds: map(play, seeds)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield lambda seeds: pool.map(play, seeds, chunksize=4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many (default %(default)s)")
    parser.add_argument("--from", type=int, default=0, dest="begin", help="the first (default %(default)s)")
    parser.add_argument("--seed", type=int, help="one alone, with its story in any case")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: the CPUs of this machine")
    return parser


if __name__ == "__main__":
    main()
