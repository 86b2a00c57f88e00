"""A whole server as a process: how it starts, what it refuses, how it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lockstep_proto.numerics import fingerprint
from lockstep_proto.v1 import service_pb2, service_pb2_grpc, training_pb2, training_pb2_grpc
from tests.client.processes import until
from tests.server.fakes import make_spec

Process = subprocess.Popen[str]


def start(state: Path, *arguments: str, **options: Any) -> Process:
    command = [
        sys.executable,
        "-m",
        "lockstep_server.main",
        "--state-dir",
        str(state),
        "--port",
        "0",
        "--http-port",
        "0",
    ]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def read_ready(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    ready: dict[str, Any] = json.loads(process.stdout.readline())
    return ready


@contextlib.contextmanager
def serving(state: Path, *arguments: str, **options: Any) -> Iterator[tuple[Process, dict[str, Any]]]:
    with start(state, *arguments, **options) as process:
        try:
            yield process, read_ready(process)
        finally:
            process.kill()


def read(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        page: bytes = answer.read()
    return page


def end(process: Process) -> str:
    """Ends it in order; returns what it wrote on stderr."""
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return errors


def test_it_says_where_it_serves_and_serves_there(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, ready):
        assert ready["pid"] == process.pid
        with grpc.insecure_channel(ready["grpc"]) as channel:
            health_stub: Any = health_pb2_grpc.HealthStub(channel)
            health = health_stub.Check(health_pb2.HealthCheckRequest(service=""))
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            (listed,) = reflection.ServerReflectionInfo(iter([request]))
            assert {service.name for service in listed.list_services_response.service} == {
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
                "lockstep.v1.DataService",
                "lockstep.v1.FleetService",
                "lockstep.v1.JobService",
                "lockstep.v1.TrainingService",
            }
            cluster = service_pb2_grpc.JobServiceStub(channel).GetCluster(service_pb2.GetClusterRequest())
            assert cluster.numerics == fingerprint()
        with urllib.request.urlopen(f"http://{ready['http']}/healthz") as answer:
            assert answer.status == 200
        called = b'lockstep_rpc_seconds_count{code="OK",method="lockstep.v1.JobService/GetCluster"} 1.0'
        until(lambda: called in read(f"http://{ready['http']}/metrics"))  # the client may know of the end first
        assert process.stdout is not None
        said = end(process)
        assert "INFO serving" in said
        assert said.endswith("INFO ended\n")
        assert "Traceback" not in said


def test_an_end_that_a_slow_disk_holds_up_is_forced(tmp_path: Path) -> None:
    code = (
        "import sys, threading, time; from lockstep_server import main\n"
        "main.END_S = 0.2\n"
        "async def stop(server): threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "main.Server.stop = stop\n"
        "main.main(sys.argv[1:])"
    )
    arguments = ["--state-dir", str(tmp_path), "--port", "0", "--http-port", "0"]
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "ended by force after 0.2 s" in end(process)


def load_data(channel: grpc.Channel) -> service_pb2.Job:
    """Submits a job and plays the fleet for it, until the job waits for workers."""
    stub = service_pb2_grpc.JobServiceStub(channel)
    job = stub.Submit(service_pb2.SubmitRequest(request_id="request", spec=make_spec()))
    resources = training_pb2.FleetResources(worker_slots=1, cpus_per_worker=1)
    told = [
        training_pb2.FleetMessage(resources=resources),
        training_pb2.FleetMessage(data_loaded=training_pb2.DataLoaded(job_id=job.id, num_rows=100)),
    ]
    list(training_pb2_grpc.FleetServiceStub(channel).Attach(iter(told)))
    for response in stub.Watch(service_pb2.WatchRequest(job_id=job.id)):
        job = response.job
        if job.phase == "waiting for workers: 0 of 1":
            break
    return job


def test_a_killed_server_takes_its_jobs_up_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, ready), grpc.insecure_channel(ready["grpc"]) as channel:
        job = load_data(channel)
        assert (job.attempt, job.num_steps) == (1, 100)
        process.kill()
        process.wait()
    with serving(tmp_path) as (process, ready), grpc.insecure_channel(ready["grpc"]) as channel:
        stub = service_pb2_grpc.JobServiceStub(channel)
        again = stub.Submit(service_pb2.SubmitRequest(request_id="request", spec=make_spec()))
        assert again.id == job.id
        assert again.state == service_pb2.JOB_STATE_RUNNING
        for response in stub.Watch(service_pb2.WatchRequest(job_id=job.id)):
            if response.job.attempt == 2:  # without a fleet: its workers may be dialling already
                break
        end(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_even_while_someone_watches(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path) as (process, ready), grpc.insecure_channel(ready["grpc"]) as channel:
        stub = service_pb2_grpc.JobServiceStub(channel)
        job = stub.Submit(service_pb2.SubmitRequest(spec=make_spec()))
        watching = stub.Watch(service_pb2.WatchRequest(job_id=job.id))
        next(watching)
        process.send_signal(number)
        with pytest.raises(grpc.RpcError):
            list(watching)
        assert process.wait(timeout=30) == 0


def test_the_end_of_its_parent_ends_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--exit-with-parent", stdin=subprocess.PIPE) as (process, _):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def test_without_the_switch_it_does_not_mind_its_stdin(tmp_path: Path) -> None:
    with serving(tmp_path, stdin=subprocess.DEVNULL) as (process, ready):
        with grpc.insecure_channel(ready["grpc"]) as channel:
            service_pb2_grpc.JobServiceStub(channel).GetCluster(service_pb2.GetClusterRequest())
        end(process)


def refused(state: Path, *arguments: str) -> str:
    with start(state, *arguments) as process:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 1, errors
        assert out == ""
        assert "Traceback" not in errors
        return errors


def test_a_second_server_on_the_same_state_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        assert f"the state directory {tmp_path} is in use by another lockstep-server (pid {process.pid})" in refused(
            tmp_path
        )


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with serving(tmp_path / "first") as (_, ready):
        port = ready["grpc"].rpartition(":")[2]
        said = refused(tmp_path / "second", "--port", port)
        assert f"the port 127.0.0.1:{port} cannot be used, most likely it is taken; give another --port" in said


def test_a_taken_http_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(tmp_path, "--http-port", str(port))
        assert f"the port 127.0.0.1:{port} cannot be used" in said
        assert "give another --http-port" in said


def test_binding_wider_without_the_switch_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path / "state", "--host", "0.0.0.0")
    assert "--host 0.0.0.0 can be reached from other machines; add --allow-remote if that is meant" in said
    assert os.listdir(tmp_path) == []
