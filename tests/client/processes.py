"""The processes of this machine, as /proc has them."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import lockstep

PATIENCE_S = 120.0  # a deadline, not a wait: far more than an orderly end takes on a busy machine


class Process(NamedTuple):
    pid: int
    birth: int  # tells it from a later process with the same number


def _stat(pid: int) -> list[str] | None:
    """State, parent, ... of a process; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def family(root: int) -> set[Process]:
    """All living descendants of a process."""
    stats = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(int(path.name)))}
    found: set[Process] = set()
    parents = {root}
    while parents:
        children = {pid for pid, stat in stats.items() if int(stat[1]) in parents}
        found |= {Process(pid, int(stats[pid][19])) for pid in children}
        parents = children
    return found


def family_of(cluster: lockstep.LocalCluster) -> set[Process]:
    """All living processes of a local cluster of this process."""
    roots = {started._process.pid for started in cluster._processes}
    mine = {process for process in family(os.getpid()) if process.pid in roots}
    return mine.union(*(family(root) for root in roots))


def marked(mark: str) -> set[Process]:
    """All living processes but this one that have inherited an environment with `mark` in it."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inherits = mark.encode() in path.joinpath("environ").read_bytes()
        except OSError:
            continue
        stat = _stat(int(path.name))
        if inherits and stat and int(path.name) != os.getpid():
            found.add(Process(int(path.name), int(stat[19])))
    return found


def session(process: Process) -> int | None:
    """The session that a process belongs to; None if it has ended."""
    stat = _stat(process.pid)
    return None if stat is None else int(stat[3])


def command(process: Process) -> str:
    """What a process is called; empty if it has ended."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def living(processes: Iterable[Process]) -> set[str]:
    """What those of the processes that still live are called."""
    alive = {process for process in processes if (stat := _stat(process.pid)) and int(stat[19]) == process.birth}
    return {f"{process.pid} {command(process)}" for process in alive}


def until(holds: Callable[[], object], otherwise: Callable[[], object] = lambda: "") -> None:
    """Poll until something holds."""
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s, otherwise()
        time.sleep(0.02)


def until_gone(processes: Iterable[Process]) -> None:
    processes = set(processes)
    assert processes
    until(lambda: not living(processes), lambda: living(processes))
