"""Finds the few faults of a failing run that it takes to fail: delta debugging (Zeller, 1999)."""

import itertools
from collections.abc import Callable, Sequence

from tests.simulator.faults import Fault
from tests.simulator.run import Plan, Report, plan, run

MAX_RUNS = 200  # a run takes a tenth of a second


def play(seed: int) -> Report:
    """Play a seed, and shrink it if it fails."""
    report = run(plan(seed))
    return shrink(report) if report.problems else report


def shrink(failing: Report, replay: Callable[[Plan], Report] = run) -> Report:
    """Return a failing run of the same seed with as few of its faults as can be found."""
    smallest, kept = failing, list(failing.plan.faults)
    num_runs, parts = 0, 2
    while len(kept) > 0 and num_runs < MAX_RUNS:
        for without in _each_left_out(kept, parts):
            num_runs += 1
            report = replay(failing.plan.with_faults(without))
            if report.problems:
                smallest, kept, parts = report, list(without), max(parts - 1, 2)
                break
        else:
            if parts >= len(kept):
                break
            parts = min(2 * parts, len(kept))
    return smallest


def _each_left_out(faults: Sequence[Fault], parts: int) -> list[list[Fault]]:
    """The list with each of so many parts left out in turn."""
    cuts = [len(faults) * i // parts for i in range(parts + 1)]
    spans = itertools.pairwise(cuts)
    return [[*faults[:lo], *faults[hi:]] for lo, hi in spans if lo < hi]


def describe(report: Report) -> str:
    """The story of a run, short: its seed, its job, what happened when, and what broke."""
    plan = report.plan
    jobs = f"job {plan.case.name}" + (" and one that starts from it" if plan.fork else "")
    head = (
        f"seed {plan.seed}: {jobs}, {plan.options}, room for {plan.worker_slots} workers, "
        f"lease {plan.lease_s:g} s, a checkpoint every {plan.checkpoint_s:g} s, "
        f"{plan.max_unsummed_bytes} bytes may wait to be summed"
    )
    broke = [f"{'BROKE':>11}  {problem}" for problem in report.problems or report.void]
    return "\n".join([head, *report.story, *broke])
