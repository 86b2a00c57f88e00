"""A cluster on this machine: a server, Ray and workers, as processes that end with the program that made them."""

import atexit
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from lockstep.client import Client
from lockstep.errors import ClusterError, LockstepError

START_S = 180.0  # Ray takes about two seconds, on a busy machine many times that
END_S = 10.0  # for an orderly end of a process; then it is killed
# One BLAS thread for the same bits; a malloc that keeps its memory for the speed of the exchange.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}


MAX_TEMPDIR = 30  # characters; Ray adds some 70 to them for its sockets, whose names may have 107
NEEDED = ("grpc_health", "grpc_reflection", "prometheus_client", "pyarrow", "ray")


class LocalCluster:
    """`with LocalCluster(workers=2) as client:` gives a Client of a cluster that ends with the block.

    Jobs may read files below `data_root` (the working directory). Without a `state_dir`, jobs and models are gone at
    the end. Port 0 takes a free one. Raises ClusterError if it cannot start.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        cpus_per_worker: int = 1,
        data_root: "str | Path | None" = None,
        state_dir: "str | Path | None" = None,
        port: int = 0,
        http_port: int = 0,
    ) -> None:
        if workers < 1 or cpus_per_worker < 1:
            raise ValueError(f"workers and cpus_per_worker must be at least 1, got {workers} and {cpus_per_worker}")
        if not Path(data_root or ".").is_dir():
            raise ValueError(f"data_root {data_root} is no directory")
        self._workers = workers
        self._cpus_per_worker = cpus_per_worker
        self._data_root = Path(data_root or Path.cwd()).absolute()
        self._state_dir = None if state_dir is None else Path(state_dir).absolute()
        self._port = port
        self._http_port = http_port
        self._temporary: Path | None = None
        self._processes: list[_Process] = []
        self._client: Client | None = None
        self.address = ""
        self.metrics_url = ""

    def start(self) -> Client:
        """Start everything, unless it is started; return a Client once the workers can be had."""
        if self._client is not None:
            return self._client
        atexit.register(self.close)  # for a program that ends without
        _STARTED.add(self)
        try:
            return self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> Client:
        _check_installed()
        state_dir = self._state_dir or self._make_temporary()
        logs = state_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        host = ["--host", "127.0.0.1", "--port", str(self._port), "--http-port", str(self._http_port)]
        server = self._launch(logs / "server.log", "lockstep_server.main", ["--state-dir", str(state_dir), *host])
        ready: dict[str, Any] = json.loads(server.first_line())
        self.address = ready["grpc"]
        self.metrics_url = f"http://{ready['http']}/metrics"
        num_cpus = str(self._workers * self._cpus_per_worker)
        cpus = ["--num-cpus", num_cpus, "--cpus-per-worker", str(self._cpus_per_worker)]
        place = ["--server", self.address, "--ray-address", "local", "--data-root", str(self._data_root)]
        fleet = self._launch(logs / "fleet.log", "lockstep_worker.fleet_main", [*place, *cpus])
        fleet.first_line()
        self._client = Client(self.address)
        self._await_fleet(self._client, fleet)
        return self._client

    def _await_fleet(self, client: Client, fleet: "_Process") -> None:
        """Wait until the fleet has told the server what there is: milliseconds after it was ready."""
        end_s = time.monotonic() + START_S
        while client.cluster().worker_slots < self._workers:
            if time.monotonic() > end_s or not fleet.running:
                raise ClusterError(f"the fleet did not attach to the server:\n{fleet.end_of_log()}")
            time.sleep(0.02)

    @property
    def running(self) -> bool:
        """Whether it is started and all its processes live."""
        return bool(self._processes) and all(process.running for process in self._processes)

    def close(self) -> None:
        """End everything. Safe to call again."""
        atexit.unregister(self.close)
        if self._client is not None:
            self._client.close()
            self._client = None
        for process in reversed(self._processes):
            process.ask_to_end()
        for process in reversed(self._processes):
            process.end()
        self._processes.clear()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def _let_go(self) -> None:
        """In a fork of this program: leave the cluster to the program itself, whose end is the cluster's end."""
        atexit.unregister(self.close)
        for process in self._processes:
            process.let_go()
        self._processes.clear()
        self._client = self._temporary = None

    def _make_temporary(self) -> Path:
        self._temporary = Path(tempfile.mkdtemp(prefix="lockstep-cluster-"))
        return self._temporary

    def _launch(self, log: Path, module: str, arguments: Sequence[str]) -> "_Process":
        process = _Process(module, [*arguments, "--exit-with-parent"], log)
        self._processes.append(process)
        return process

    def __enter__(self) -> Client:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = f" at {self.address}" if self._processes else ", not started"
        return f"<LocalCluster of {self._workers} workers with {self._cpus_per_worker} CPUs{where}>"


_STARTED: "weakref.WeakSet[LocalCluster]" = weakref.WeakSet()


def _let_go_in_fork() -> None:
    for cluster in list(_STARTED):
        cluster._let_go()


os.register_at_fork(after_in_child=_let_go_in_fork)


def _check_installed() -> None:
    """The client alone is light; a cluster needs the rest of Lockstep, too."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ClusterError(f"a local cluster needs {', '.join(missing)}: pip install 'lockstep-training[all]'")


def _environment() -> dict[str, str]:
    environment = os.environ | ENVIRONMENT
    if len(tempfile.gettempdir()) > MAX_TEMPDIR:
        environment.setdefault("RAY_TMPDIR", "/tmp")
    return environment


class _Process:
    """A process that ends when its standard input does: with this one, however this one ends."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        self._module = module
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the program, not for its cluster
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def first_line(self) -> str:
        """Wait for the line that says that the process is ready. Raises ClusterError."""
        out: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        readable, _, _ = select.select([out], [], [], START_S)
        line = out.readline().decode() if readable else ""
        if not line:
            reason = "ended" if readable else f"was not ready after {START_S:g} s"
            raise ClusterError(f"{self._module} {reason}:\n{self.end_of_log()}")
        return line

    def end_of_log(self) -> str:
        """Return the last lines that the process wrote."""
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        except OSError as error:
            raise LockstepError(f"{self._log}: {error.strerror}") from None

    def ask_to_end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def let_go(self) -> None:
        self.ask_to_end()  # only closes this end of the pipes: the process sees their end when all copies are closed
        self._process.returncode = 0

    def end(self) -> None:
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
