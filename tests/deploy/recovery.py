"""What faults cost: the times from a fault to the next completed step, and the table of them.

Steps are known by looks at the jobs, several a second, so a time is exact to the distance of two looks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
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

    def recoveries(self, fault: Window) -> list[float]:
        """How long each job that a fault met waited for its next completed step, in seconds.

        That is the longest wait that the fault can have caused. While a server or a Ray head is held, the jobs cannot
        be expected to go on: a wait that outlasts the hold counts from when the fault was lifted.
        """
        found = []
        for steps in self._jobs.values():
            before = [time_s for time_s in steps.times_s if time_s <= fault.began_s]
            until = [time_s for time_s in steps.times_s if fault.began_s < time_s]
            waits = [
                end_s - max(begin_s, fault.lifted_s if self._is_held(fault, end_s) else fault.began_s)
                for begin_s, end_s in pairwise([*before[-1:], *until])
                if begin_s < fault.whole_s
            ]
            found += [max(waits)] if before and waits else []
        return found

    def _is_held(self, fault: Window, end_s: float) -> bool:
        return fault.service != "ray-worker" and end_s > fault.lifted_s


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that is not below the given share of them: of few values, p95 is the largest."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


@dataclass(frozen=True)
class Row:
    """The times of one kind of fault, in seconds: to the next completed step, and to the last worker's return."""

    service: str
    action: str
    faults: int
    jobs: int
    step_p50_s: float
    step_p95_s: float
    whole_p50_s: float
    whole_p95_s: float


def rows(progress: Progress, faults: Iterable[Window]) -> list[Row]:
    """A row for each service, and one for each of its actions."""
    faults = list(faults)
    found = []
    for service in dict.fromkeys(fault.service for fault in faults):
        ours = [fault for fault in faults if fault.service == service]
        found.append(_row(progress, service, "all", ours))
        for action in sorted({fault.action for fault in ours}):
            found.append(_row(progress, service, action, [fault for fault in ours if fault.action == action]))
    return [row for row in found if row is not None]


def _row(progress: Progress, service: str, action: str, faults: Sequence[Window]) -> Row | None:
    steps = [seconds for fault in faults for seconds in progress.recoveries(fault)]
    whole = [fault.whole_s - fault.lifted_s for fault in faults]
    if not steps:
        return None
    halves = [round(percentile(values, share), 2) for values in (steps, whole) for share in (0.5, 0.95)]
    return Row(service, action, len(faults), len(steps), *halves)


def as_table(found: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    head = ["service", "fault", "faults", "jobs met", "next step: p50", "p95", "all workers: p50", "p95"]
    cells = [[str(value) for value in asdict(row).values()] for row in found]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(found: Sequence[Row], **about: Any) -> dict[str, Any]:
    """The rows, and what else is to be told of the run."""
    return {**about, "recovery": [asdict(row) for row in found]}
