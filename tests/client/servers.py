"""Servers without workers, as a process that can be killed and started again or in a thread; commands as processes."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import lockstep
from lockstep_server.server import Server
from lockstep_server.settings import Settings

_PORTS = itertools.count(20_000 + os.getpid() % 500 * 20, 2)  # below those that the system gives to those who dial


def free_port() -> int:
    """A port that is free, as is the next one, which workers come to, and that nobody is given by chance meanwhile."""
    return next(port for port in _PORTS if _is_free(port) and _is_free(port + 1))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def command_process(server: lockstep.Client | str, *arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """A command as a process of its own, on which Ctrl-C acts as in a terminal."""
    address = server if isinstance(server, str) else server.address
    command = ["env", "--default-signal=INT", f"LOCKSTEP_SERVER={address}", sys.executable, "-X", "faulthandler"]
    with subprocess.Popen(
        [*command, "-m", "lockstep.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def ended(running: subprocess.Popen[str], timeout_s: float = 30.0) -> tuple[str, str]:
    """What a command has written when it has ended; one that does not end in time says where its threads are."""
    try:
        return running.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGABRT)
        out, err = running.communicate()
        pytest.fail(f"not ended after {timeout_s:g} s\n{out}\n{err}")


class ServerProcess:
    """`lockstep-server` on a free port, or on this one, that it has again when it is started again."""

    def __init__(self, state_dir: Path, port: int | None = None) -> None:
        self._state_dir = state_dir
        self._port = port or free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "lockstep_server.main", "--state-dir", str(self._state_dir)]
        log = (self._state_dir.parent / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port), "--http-port", "0", "--exit-with-parent"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        self.address = json.loads(self._process.stdout.readline())["grpc"]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


class ServerThread:
    """A server in a thread of this process, so that a test can reach into it."""

    def __init__(self, state_dir: Path, **settings: Any) -> None:
        self._settings = Settings(state_dir=state_dir, port=0, http_port=0, **settings)
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        server = Server(self._settings)
        await server.start()
        self.address = server.grpc_address
        self._ready.set()
        await self._ending.wait()
        await server.stop()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(30)
        self._loop.close()
