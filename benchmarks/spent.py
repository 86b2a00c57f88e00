"""Where the time of the cores goes while a local cluster trains: to computing, to the workers' rest, to the server."""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

import lockstep
from benchmarks.networks import Case
from benchmarks.processes import children, command, cpu_s

SERVER, FLEET = "lockstep_server.main", "lockstep_worker.fleet_main"


@dataclass(frozen=True)
class Spent:
    """Milliseconds of a step: of CPU, of the server's process and of all the fleet's, and of the clock."""

    server: float
    fleet: float
    wall: float


@dataclass(frozen=True)
class _Sample:
    step: int
    wall_s: float
    server_s: float
    fleet_s: dict[int, float]  # by process

    def fleet_since(self, first: "_Sample") -> float:
        """Return what the fleet has used since; of a process that has ended meanwhile nothing is known."""
        return sum(used_s - first.fleet_s.get(pid, 0.0) for pid, used_s in self.fleet_s.items())


def watch(updates: Iterable[lockstep.Update], case: Case) -> Spent:
    """Follow a job of this process's only local cluster to its end; what counts are the steps after its warm-up."""
    mine = {module: pid for pid in children()[os.getpid()] for module in (SERVER, FLEET) if module in command(pid)}
    samples: list[_Sample] = []
    for update in updates:
        if update.job.state == "running" and update.job.step >= case.warmup_epochs * case.steps_per_epoch:
            samples.append(_Sample(update.job.step, time.monotonic(), cpu_s(mine[SERVER]), _used_s(mine[FLEET])))
    first, last = samples[0], samples[-1]
    steps = (last.step - first.step) / 1000
    return Spent(
        (last.server_s - first.server_s) / steps,
        last.fleet_since(first) / steps,
        (last.wall_s - first.wall_s) / steps,
    )


def _used_s(pid: int) -> dict[int, float]:
    """Return the CPU seconds of a process, and of all that it has started or that those have, by process."""
    started, found = children(), [pid]
    for parent in found:
        found += started[parent]
    used_s = {}
    for process in found:
        with contextlib.suppress(OSError):  # it has ended
            used_s[process] = cpu_s(process)
    return used_s
