"""A local cluster in the background: `lockstep up` and `lockstep down`."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep.errors import ClusterError
from lockstep.local import START_S, LocalCluster

STOP_S = 30.0  # checkpoints are written within


def home() -> Path:
    """Return the directory of the background cluster: $XDG_STATE_HOME/lockstep, by default ~/.local/state/lockstep."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "lockstep"


def running() -> dict[str, Any] | None:
    """Return pid, address and metrics_url of the background cluster, None if there is none."""
    try:
        known: dict[str, Any] = json.loads(_state_file().read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return known if _alive(known["pid"]) else None


def up(arguments: Sequence[str]) -> dict[str, Any]:
    """Start the background cluster and wait until it is ready. Raises ClusterError."""
    home().mkdir(parents=True, exist_ok=True)
    _state_file().unlink(missing_ok=True)
    log = home() / "cluster.log"
    with log.open("wb") as file:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "lockstep.background", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        known = running()
        if known is not None:
            return known
        if keeper.poll() is not None:
            raise ClusterError(log.read_text(errors="replace").strip() or "the cluster ended at once")
        time.sleep(0.05)
    keeper.terminate()
    raise ClusterError(f"the cluster was not ready after {START_S:g} s; its log is {log}")


def down() -> bool:
    """End the background cluster and wait until it is gone. Return whether there was one."""
    known = running()
    if known is None:
        return False
    os.kill(known["pid"], signal.SIGTERM)
    end_s = time.monotonic() + STOP_S
    while _alive(known["pid"]):
        if time.monotonic() > end_s:
            raise ClusterError(f"the cluster (process {known['pid']}) has not ended after {STOP_S:g} s")
        time.sleep(0.05)
    _state_file().unlink(missing_ok=True)
    return True


def _state_file() -> Path:
    return home() / "cluster.json"


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # a child of ours that has ended would otherwise count as alive
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the cluster."""
    parser.add_argument("--workers", type=int, default=2, help="workers there is room for (default 2)")
    parser.add_argument("--cpus-per-worker", type=int, default=1, help="CPUs of each (default 1)")
    parser.add_argument("--port", type=int, default=50051, help="gRPC port (default 50051)")
    parser.add_argument("--http-port", type=int, default=9464, help="port of metrics and health (default 9464)")
    parser.add_argument("--data-root", default=".", help="folder below which data.path is read (default: here)")


def main() -> None:
    """Keep a cluster until a signal ends it."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args()
    cluster = LocalCluster(
        options.workers,
        cpus_per_worker=options.cpus_per_worker,
        data_root=options.data_root,
        state_dir=home() / "server",
        port=options.port,
        http_port=options.http_port,
    )
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        cluster.start()
    except ClusterError as error:
        sys.exit(str(error))
    known = {"pid": os.getpid(), "address": cluster.address, "metrics_url": cluster.metrics_url}
    partial = _state_file().with_suffix(".part")
    partial.write_text(json.dumps(known))
    partial.replace(_state_file())
    signal.sigwait(ending)
    cluster.close()


if __name__ == "__main__":
    main()
