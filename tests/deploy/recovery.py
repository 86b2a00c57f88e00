"""What faults cost: the times from a fault to the next completed step, and the table of them.

Steps are known by looks at the jobs, several a second, so a time is exact to the distance of two looks.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Window:
    """A fault: what was done, when it began, was lifted, and when the cluster had been whole again for a while."""

    service: str
    action: str
    began_s: float
    lifted_s: float
    whole_s: float
    bereft: frozenset[str] = frozenset()  # the jobs that it left without any worker


@dataclass(frozen=True)
class Recovery:
    """What a fault cost one job, in seconds: until its next step, and until the cluster was whole."""

    service: str
    action: str
    step_s: float
    whole_s: float


@dataclass
class _Steps:
    attempt: int
    step: int
    times_s: list[float] = field(default_factory=list)  # of the looks that saw more steps than those before


class Progress:
    """When the jobs were seen to have completed steps."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Steps] = {}

    def look(self, job_id: str, attempt: int, step: int, now_s: float, *, ended: bool) -> None:
        """Take in how far a job is. A new attempt may begin at an earlier step; its end is progress, too."""
        known = self._jobs.setdefault(job_id, _Steps(attempt, step))
        if ended or (attempt == known.attempt and step > known.step):
            known.times_s.append(now_s)
        known.attempt, known.step = attempt, step

    def newest_s(self, job_id: str) -> float:
        """When a job was last seen to have completed a step."""
        return max(self._jobs[job_id].times_s, default=-math.inf)

    def recoveries(self, fault: Window) -> list[Recovery]:
        """What a fault cost each job that it met."""
        waits_s = {job_id: self._longest_wait_s(steps.times_s, fault) for job_id, steps in self._jobs.items()}
        return [
            Recovery(
                f"{fault.service}, a job's only one" if job_id in fault.bereft else fault.service,
                fault.action,
                wait_s,
                fault.whole_s - fault.lifted_s,
            )
            for job_id, wait_s in waits_s.items()
            if wait_s is not None
        ]

    def _longest_wait_s(self, times_s: Sequence[float], fault: Window) -> float | None:
        """Return the longest wait for a step that a fault can have caused; None if the job did not run then.

        While a server or a Ray head is held, the jobs cannot be expected to go on: a wait that outlasts the hold
        counts from when the fault was lifted.
        """
        before = [time_s for time_s in times_s if time_s <= fault.began_s]
        after = [time_s for time_s in times_s if time_s > fault.began_s]
        if not (before and after):
            return None
        held = fault.service != "ray-worker"
        return max(
            end_s - max(begin_s, fault.lifted_s if held and end_s > fault.lifted_s else fault.began_s)
            for begin_s, end_s in pairwise([before[-1], *after])
            if begin_s < fault.whole_s
        )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that is not below the given share of them: of few values, p95 is the largest."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


@dataclass(frozen=True)
class Row:
    """The times of one kind of fault, in seconds: to the next completed step, and to the last worker's return."""

    service: str
    action: str
    jobs: int
    step_p50_s: float
    step_p95_s: float
    whole_p50_s: float
    whole_p95_s: float


def rows(found: Sequence[Recovery]) -> list[Row]:
    """A row for each service, and one for each of its actions."""
    kinds = {(one.service, action) for one in found for action in ("", one.action)}
    return [
        _row(service, action, [one for one in found if one.service == service and action in ("", one.action)])
        for service, action in sorted(kinds)
    ]


def _row(service: str, action: str, found: Sequence[Recovery]) -> Row:
    steps, whole = [one.step_s for one in found], [one.whole_s for one in found]
    times = [round(percentile(values, share), 2) for values in (steps, whole) for share in (0.5, 0.95)]
    return Row(service, action or "all", len(found), *times)


def as_table(found: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    head = ["service", "fault", "jobs met", "next step: p50", "p95", "all workers: p50", "p95"]
    cells = [[str(value) for value in astuple(row)] for row in found]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(found: Sequence[Row], **about: Any) -> dict[str, Any]:
    """The rows, and what else is to be told of the run."""
    return {**about, "recovery": [asdict(row) for row in found]}
