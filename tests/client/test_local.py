"""Local clusters: they are ready, they end with their program however it ends, and they say what keeps them from it."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lockstep
from lockstep import background, local
from tests.client.processes import command, family, family_of, living, marked, session, until, until_gone
from tests.client.samples import ENDLESS, SPEC, Ran, Run, X, Y
from tests.client.servers import ServerThread, free_port

pytestmark = pytest.mark.cluster

# A program that holds a cluster with a running job until it is killed, or reads a line.
PROGRAM = f"""
import os, signal, sys
import numpy as np
import lockstep
client = lockstep.LocalCluster(1).start()
job = client.submit({ENDLESS!r}, data=(np.ones((8, 4)), [0, 1, 2, 0, 1, 2, 0, 1]))
next(update for update in client.watch(job.id) if update.job.step > 0)
fork = os.fork() if "fork" in sys.argv else None  # as multiprocessing does
if fork == 0:
    signal.pause()
print("ready", fork, sep="\\n", flush=True)
sys.stdin.readline()
"""


# In a program


def test_a_cluster_is_ready_when_it_is_started_and_ends_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a Ray cluster that is none of its business
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    cluster = lockstep.LocalCluster(workers=1, cpus_per_worker=2, data_root=tmp_path)
    assert repr(cluster) == "<LocalCluster of 1 workers with 2 CPUs, not started>"
    with cluster as client:
        assert cluster.start() is client
        assert cluster.running
        found = client.cluster()
        assert (found.worker_slots, found.cpus_per_worker, found.nodes) == (1, 2, 1)
        assert repr(cluster) == f"<LocalCluster of 1 workers with 2 CPUs at {client.address}>"
        with urllib.request.urlopen(cluster.metrics_url) as answer:
            assert b"lockstep_build_info" in answer.read()
        job = client.submit(ENDLESS, data=(X, Y))
        next(update for update in client.watch(job.id, timeout_s=60) if update.job.step > 0)
        processes = family_of(cluster)
        commands = " ".join(map(command, processes))
        for part in ("lockstep_server.main", "lockstep_worker.fleet_main", "raylet", "ray::WorkerProcess"):
            assert part in commands
        assert os.getsid(0) not in map(session, processes), "Ctrl-C is not for them"
        assert list(tmp_path.glob("lockstep-cluster-*"))
    assert not cluster.running
    cluster.close()
    until_gone(processes)
    assert list(tmp_path.glob("lockstep-cluster-*")) == [], "jobs without a state directory are gone"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(mark: str, *arguments: str) -> subprocess.Popen[bytes]:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"LOCKSTEP_TEST_MARK": mark, "TMPDIR": str(tmp_path)},
        )
        started.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("killed", [True, False])
def test_a_program_leaves_no_process_of_its_cluster_behind(
    program: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, killed: bool
) -> None:
    mark = secrets.token_hex(8)
    running = program(mark)
    processes = family(running.pid) | marked(mark)
    assert any("ray::WorkerProcess" in command(process) for process in processes)
    if killed:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    else:
        running.communicate(b"\n")  # it ends, and never closes its cluster
        assert running.returncode == 0
        assert list(tmp_path.glob("lockstep-cluster-*")) == []
    until_gone(processes)
    until(lambda: not living(marked(mark)), lambda: living(marked(mark)))


def test_a_fork_of_the_program_does_not_keep_its_cluster(program: Callable[..., subprocess.Popen[bytes]]) -> None:
    mark = secrets.token_hex(8)
    running = program(mark, "fork")
    assert running.stdout is not None
    fork = int(running.stdout.readline())
    processes = family(running.pid)
    (fork_itself,) = (process for process in processes if process.pid == fork)
    try:
        running.kill()
        until_gone(processes - {fork_itself})
        assert living([fork_itself])
    finally:
        os.kill(fork, signal.SIGKILL)


@pytest.mark.parametrize("which", ["port", "http_port"])
def test_a_port_that_is_taken_is_named(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = secrets.token_hex(8)
    monkeypatch.setenv("LOCKSTEP_TEST_MARK", mark)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(lockstep.ClusterError) as caught:
            lockstep.LocalCluster(1, **{which: port}).start()  # type: ignore[arg-type]
    assert f"the port 127.0.0.1:{port} cannot be used" in str(caught.value)
    assert f"give another --{which.replace('_', '-')}" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    until(lambda: not living(marked(mark)), lambda: living(marked(mark)))


def test_a_state_directory_that_is_taken_is_named(tmp_path: Path) -> None:
    with ServerThread(tmp_path / "state"), pytest.raises(lockstep.ClusterError) as caught:
        lockstep.LocalCluster(1, state_dir=tmp_path / "state").start()
    taken = f"the state directory {tmp_path / 'state'} is in use by another lockstep-server (pid {os.getpid()})"
    assert taken in str(caught.value)


def test_what_a_process_wrote_before_it_ended_is_told(tmp_path: Path) -> None:
    process = local._Process("lockstep_worker.fleet_main", ["--frob"], tmp_path / "fleet.log")
    with pytest.raises(lockstep.ClusterError, match=r"(?s)lockstep_worker\.fleet_main ended:.* arguments: --frob"):
        process.first_line()
    process.ask_to_end()
    process.end()


def test_wrong_arguments_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers and cpus_per_worker must be at least 1, got 0 and 1"):
        lockstep.LocalCluster(0)
    with pytest.raises(ValueError, match=r"data_root .*absent is no directory"):
        lockstep.LocalCluster(1, data_root=tmp_path / "absent")


def test_a_client_without_the_rest_of_lockstep_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "NEEDED", ("json", "no_such_module"))
    with pytest.raises(lockstep.ClusterError) as caught:
        lockstep.LocalCluster(1).start()
    assert str(caught.value) == "a local cluster needs no_such_module: pip install 'lockstep-training[all]'"


# In the background


@pytest.fixture
def up_or_down(run: Run) -> Iterator[Run]:
    """Runs commands, and at the end `lockstep down`."""
    yield run
    background.down()


def test_up_and_down_and_up_again(up_or_down: Run, tmp_path: Path) -> None:
    run = up_or_down
    port, http_port = free_port(), free_port()
    up = ["up", "--workers=1", f"--port={port}", f"--http-port={http_port}", f"--data-root={tmp_path}"]
    (tmp_path / "rows.csv").write_text("a,b,c,d,y\n" + "1,2,3,4,0\n" * 8)
    (tmp_path / "job.json").write_text(json.dumps(SPEC | {"data": {"path": "rows.csv", "target": "y"}}))
    address = f"127.0.0.1:{port}"

    started = run(*up)
    assert (started.code, started.err) == (0, "")
    assert re.search(rf"^server +{address}$", started.out, re.M)
    assert re.search(rf"^metrics +http://127.0.0.1:{http_port}/metrics$", started.out, re.M)
    assert f"lockstep submit examples/digits.toml --watch --server {address}" in started.out
    assert run("health", "--server", address).code == 0
    assert run(*up) == Ran(0, f"a cluster is up already at {address}; `lockstep down` ends it\n", "")
    assert run("submit", tmp_path / "job.json", "--watch", "--timeout=60", "--server", address).code == 0

    known = background.running()
    assert known is not None
    processes = family(known["pid"])
    assert run("down") == Ran(0, "the cluster has ended\n", "")
    until_gone(processes)
    assert run("down") == Ran(0, "no cluster is up\n", "")
    assert run("health", "--server", address).code == 3

    assert run(*up).code == 0
    listed = run("list", "--format=json", "--server", address).json
    assert [job["state"] for job in listed] == ["succeeded"], "it keeps its jobs"

    known = background.running()
    assert known is not None
    (server,) = (process for process in family(known["pid"]) if "lockstep_server.main" in command(process))
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: background.running() is None)
    assert run("down") == Ran(0, "no cluster is up\n", ""), "a cluster that has lost its server ends"


def test_up_says_what_keeps_it_from_starting(up_or_down: Run) -> None:
    run = up_or_down
    with ServerThread(background.home() / "server") as server:
        ran = run("up", "--port=0", "--http-port=0")
        assert (ran.code, ran.out) == (3, "")
        assert f"the state directory {background.home() / 'server'} is in use by another lockstep-server" in ran.err
        assert "Traceback" not in ran.err
        taken = server.address.rpartition(":")[2]
    with socket.create_server(("127.0.0.1", int(taken))):
        ran = run("up", f"--port={taken}", "--http-port=0")
        assert (ran.code, ran.out) == (3, "")
        assert f"the port 127.0.0.1:{taken} cannot be used, most likely it is taken" in ran.err
    ran = run("up", "--port=0", "--http-port=0", "--data-root=/absent")
    assert ran == Ran(3, "", "lockstep: data_root /absent is no directory\n")
    assert background.running() is None


def test_another_process_with_the_number_of_a_former_cluster_is_left_alone() -> None:
    background.home().mkdir(parents=True)
    known = {"pid": os.getpid(), "birth": 1, "address": "127.0.0.1:1", "metrics_url": ""}
    (background.home() / "cluster.json").write_text(json.dumps(known))
    assert background.running() is None
    assert background.down() is False
