"""Where the time of the cores goes while a job trains."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import lockstep
from benchmarks.networks import Case
from benchmarks.processes import children, cpu_s


@dataclass(frozen=True)
class Spent:
    """Milliseconds of a step: by the clock, and of CPU by those who have used it."""

    wall_ms: float
    cpu_ms: dict[str, float]

    def idle_ms(self, num_cpus: int) -> float:
        """Return what the CPUs have not done for any of them."""
        return num_cpus * self.wall_ms - sum(self.cpu_ms.values())


@dataclass(frozen=True)
class _Sample:
    step: int
    wall_s: float
    used_s: dict[str, dict[int, float]]  # by process

    def since(self, first: "_Sample", name: str) -> float:
        """Return what one has used since; of a process that has ended meanwhile nothing is known."""
        return sum(used_s - first.used_s[name].get(pid, 0.0) for pid, used_s in self.used_s[name].items())


def watch(updates: Iterable[lockstep.Update], case: Case, processes: Mapping[str, list[int]]) -> Spent:
    """Follow a job to its end; what counts are the steps after its warm-up.

    `processes` are asked for what they and all that they have started use. Raises RuntimeError if there are too few
    steps.
    """
    samples: list[_Sample] = []
    for update in updates:
        if update.job.state == "running" and update.job.step >= case.warmup_epochs * case.steps_per_epoch:
            used_s = {name: _used_s(pids) for name, pids in processes.items()}
            samples.append(_Sample(update.job.step, time.monotonic(), used_s))
    if not samples or samples[-1].step == samples[0].step:
        raise RuntimeError("the job was over before it could be looked at twice: give it more epochs")
    first, last = samples[0], samples[-1]
    steps = (last.step - first.step) / 1000
    return Spent((last.wall_s - first.wall_s) / steps, {name: last.since(first, name) / steps for name in processes})


def _used_s(pids: list[int]) -> dict[int, float]:
    """Return the CPU seconds of processes, and of all that they have started or that those have, by process."""
    started, found = children(), list(pids)
    for parent in found:
        found += started[parent]
    used_s = {}
    for process in found:
        with contextlib.suppress(OSError):  # it has ended
            used_s[process] = cpu_s(process)
    return used_s
