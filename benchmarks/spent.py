"""Where the time of the cores goes while a local cluster trains: to computing, to the workers' rest, to the server."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import lockstep
from benchmarks.networks import Case

SERVER, FLEET = "lockstep_server.main", "lockstep_worker.fleet_main"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


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
    fleet_s: float


def watch(updates: Iterable[lockstep.Update], case: Case) -> Spent:
    """Follow a job of this process's only local cluster to its end; what counts are the steps after its warm-up."""
    children = _children()
    server, fleet = (_find(children.get(os.getpid(), []), module) for module in (SERVER, FLEET))
    samples: list[_Sample] = []
    for update in updates:
        if update.job.state == "running" and update.job.step >= case.warmup_epochs * case.steps_per_epoch:
            used_s = cpu_s(server), sum(map(cpu_s, descendants(fleet)))
            samples.append(_Sample(update.job.step, time.monotonic(), *used_s))
    first, last = samples[0], samples[-1]
    steps = (last.step - first.step) / 1000
    return Spent(
        (last.server_s - first.server_s) / steps,
        (last.fleet_s - first.fleet_s) / steps,
        (last.wall_s - first.wall_s) / steps,
    )


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, those of its threads that have ended and of the kernel for it included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has ended
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, or that those have."""
    children = _children()
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    return children


def _find(pids: Iterable[int], module: str) -> int:
    return next(pid for pid in pids if module in Path(f"/proc/{pid}/cmdline").read_text())
