"""A local cluster in the background: `lockstep up` and `lockstep down`."""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep.errors import ClusterError
from lockstep.local import START_S, LocalCluster

UP_S = 2 * START_S  # the server and then the fleet, each within START_S
DOWN_S = 30.0  # checkpoints are written within
POLL_S = 0.05
LOOK_S = 1.0


def home() -> Path:
    """Return the directory of the background cluster: $XDG_STATE_HOME/lockstep, by default ~/.local/state/lockstep."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "lockstep"


def running() -> dict[str, Any] | None:
    """Return pid, address and metrics_url of the background cluster; None if there is none."""
    try:
        known: dict[str, Any] = json.loads(_state_file().read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return known if _is_alive(known) else None


def up(arguments: Sequence[str]) -> dict[str, Any]:
    """Start the background cluster and wait until it is ready. Raises ClusterError."""
    home().mkdir(parents=True, exist_ok=True)
    _state_file().unlink(missing_ok=True)
    log = home() / "cluster.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "lockstep.background", *arguments]
        keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    end_s = time.monotonic() + UP_S
    try:
        while time.monotonic() < end_s:
            known = running()
            if known is not None:
                keeper.returncode = 0  # it is not ours to wait for any more
                return known
            if keeper.poll() is not None:
                raise ClusterError(log.read_text(errors="replace").strip() or "the cluster ended at once")
            time.sleep(POLL_S)
        raise ClusterError(f"the cluster was not ready after {UP_S:g} s; its log is {log}")
    except BaseException:  # Ctrl-C, too
        keeper.terminate()
        raise


def down() -> bool:
    """End the background cluster and wait until it is gone. Return whether there was one."""
    known = running()
    if known is None:
        return False
    os.kill(known["pid"], signal.SIGTERM)
    end_s = time.monotonic() + DOWN_S
    while _is_alive(known):
        if time.monotonic() > end_s:
            raise ClusterError(f"the cluster (process {known['pid']}) has not ended after {DOWN_S:g} s")
        time.sleep(POLL_S)
    _state_file().unlink(missing_ok=True)
    return True


def _state_file() -> Path:
    return home() / "cluster.json"


def _is_alive(known: dict[str, Any]) -> bool:
    """Whether the keeper lives. A process that got its number later, after a restart of the machine, is another."""
    return known.get("birth") is not None and known["birth"] == _birth(known["pid"])


def _birth(pid: int) -> int | None:
    """Return when a process was born, in ticks since the machine started; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # what comes before is its name, which may hold blanks
    return None if fields[0] == "Z" else int(fields[19])


def positive(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the cluster."""
    parser.add_argument("--workers", type=positive, default=2, help="workers there is room for (default 2)")
    parser.add_argument("--cpus-per-worker", type=positive, default=1, help="CPUs of each (default 1)")
    parser.add_argument("--port", type=int, default=50051, help="gRPC port (default 50051)")
    parser.add_argument("--http-port", type=int, default=9464, help="port of metrics and health (default 9464)")
    parser.add_argument("--data-root", default=".", help="folder below which data.path is read (default: here)")


def main() -> None:
    """Keep a cluster until a signal, or the end of one of its processes, ends it."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args()
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # an Event's lock may be held where a signal comes
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.put(number))
    try:
        cluster = LocalCluster(
            options.workers,
            cpus_per_worker=options.cpus_per_worker,
            data_root=options.data_root,
            state_dir=home() / "server",
            port=options.port,
            http_port=options.http_port,
        )
        cluster.start()
    except (ClusterError, ValueError) as error:
        sys.exit(str(error))
    pid = os.getpid()
    known = {"pid": pid, "birth": _birth(pid), "address": cluster.address, "metrics_url": cluster.metrics_url}
    partial = _state_file().with_suffix(".part")
    partial.write_text(json.dumps(known))
    partial.replace(_state_file())
    while cluster.running and not _has_come(signals):
        pass
    cluster.close()


def _has_come(signals: "queue.SimpleQueue[int]") -> bool:
    """Wait for a signal, for some time."""
    try:
        signals.get(timeout=LOOK_S)
    except queue.Empty:
        return False
    return True


if __name__ == "__main__":
    main()
