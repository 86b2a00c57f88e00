"""Processes that a benchmark starts, and what they cost."""

import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lockstep.local import ENVIRONMENT

END_S = 20.0


def launch(module: str, *arguments: object, prefix: Sequence[str] = (), **streams: Any) -> "subprocess.Popen[str]":
    """Start a module of Python as the product starts its processes; it ends with its standard input, or by itself."""
    command = [*prefix, sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT, **streams
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a process prints. Raises RuntimeError if it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} has ended with {process.wait()}")
    return line.strip()


def end(process: "subprocess.Popen[str]") -> None:
    """Have a process end, by itself if it will."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, threads that have ended included. Raises OSError."""
    return time.clock_gettime(~pid << 3 | 2)  # the number that Linux gives this clock, see clock_getcpuclockid(3)


def children() -> dict[int, list[int]]:
    """Return the processes that every process has started."""
    found = collections.defaultdict[int, list[int]](list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            found[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
    return found


def command(pid: int) -> str:
    """Return what a process was started with."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def main_thread_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process's first thread, which has the event loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def rss_bytes(pid: int) -> int:
    """Return the memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


class Server:
    """`lockstep-server` with a state directory of its own, without a fleet."""

    def __init__(
        self,
        *,
        module: str = "lockstep_server.main",
        host: str = "127.0.0.1",
        shares_memory: bool = True,
        prefix: Sequence[str] = (),
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="lockstep-benchmarks-")
        state_dir = Path(self._directory.name) / "state"
        switches = [] if host == "127.0.0.1" else ["--allow-remote"]
        switches += [] if shares_memory else ["--no-shared-memory"]
        place = ["--state-dir", state_dir, "--host", host, "--port", 0, "--http-port", 0, *switches]
        with (Path(self._directory.name) / "server.log").open("ab") as log:
            self._process = launch(module, *place, "--exit-with-parent", prefix=prefix, stderr=log)
        ready = json.loads(line_of(self._process))
        self.address: str = ready["grpc"]
        self.pid: int = ready["pid"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        end(self._process)
        self._directory.cleanup()
