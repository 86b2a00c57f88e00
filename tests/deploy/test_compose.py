"""The compose cluster, from outside: its ports on loopback are all that these tests use of it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lockstep
from lockstep_proto import numerics

ROOT = Path(__file__).parents[2]
SERVICES = ["prometheus", "ray-head", "ray-worker", "server"]

pytestmark = [pytest.mark.docker, pytest.mark.cluster, pytest.mark.timeout(600)]

# It has no end of its own within the test; the test ends it, between two versions.
ENDLESS = {
    "name": "scaled",
    "network": {"inputs": 64, "layers": [{"units": 512, "activation": "tanh"}, {"units": 10, "activation": "softmax"}]},
    "loss": "cross_entropy",
    "optimizer": {"adam": {"learning_rate": 0.0005}},
    "batch_size": 1024,
    "steps": 1_000_000,
    "shards": 8,
    "seed": 3,
    "workers": {"min": 1, "max": 8},
    "data": {"path": "examples/digits-train.csv", "target": "label"},
}

# Kills the process whose command line has the given words; the image has no pkill.
KILL = """
import os, pathlib, signal, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = process.joinpath("cmdline").read_bytes().replace(b"\\0", b" ").decode()
    except OSError:
        continue  # it has ended meanwhile
    if sys.argv[1] in words and int(process.name) != os.getpid():
        os.kill(int(process.name), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Compose:
    """One compose project of its own: its name and the ports it publishes."""

    project: str
    grpc_port: int
    http_port: int
    prometheus_port: int

    def __call__(self, *arguments: str) -> str:
        ports = {
            "LOCKSTEP_PORT": self.grpc_port,
            "LOCKSTEP_HTTP_PORT": self.http_port,
            "LOCKSTEP_PROMETHEUS_PORT": self.prometheus_port,
        }
        return run(
            "docker-compose", "--project-name", self.project, *arguments, **{name: str(p) for name, p in ports.items()}
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def containers(self) -> list[dict[str, Any]]:
        """What `docker inspect` says of each of them, stopped ones too."""
        ids = run("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}").split()
        return list(json.loads(run("docker", "inspect", *ids))) if ids else []

    def service(self, name: str) -> dict[str, Any]:
        """What `docker inspect` says of the one container of a service."""
        (container,) = (c for c in self.containers() if c["Config"]["Labels"]["com.docker.compose.service"] == name)
        return container

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an expression now: the newest value of each series."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus_port}/api/v1/query?{query}") as answer:
            return list(json.load(answer)["data"]["result"])


def run(*command: str, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300.0,
    )
    assert result.returncode == 0, f"{' '.join(command)}: {result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(client: lockstep.Client, job: lockstep.Job, *, workers: int, beyond: int = -1) -> lockstep.Job:
    """The job as it was when it first had so many workers, and a step beyond the given one."""
    seen, said = job, []
    try:
        for update in client.watch(job.id, timeout_s=60.0):
            seen = update.job
            said += [event.message for event in update.events]
            if seen.num_workers == workers and seen.step > beyond:
                return seen
    except lockstep.WaitTimeoutError:
        pass
    raise AssertionError(f"never had {workers} workers beyond step {beyond}: {seen!r} {seen.phase} {said}")


def assert_same_bits(job: lockstep.Job, reference: lockstep.Job) -> None:
    for field in ("numerics", "server_numerics"):
        assert numerics.difference(getattr(job, field), getattr(reference, field)) is None
    assert job.digest == reference.digest


@pytest.fixture(scope="module")
def compose(request: pytest.FixtureRequest) -> Iterator[Compose]:
    cluster = Compose(f"lockstep-test-{secrets.token_hex(4)}", free_port(), free_port(), free_port())
    failed = request.session.testsfailed
    try:
        cluster("up", "--detach", "--build")
        yield cluster
    finally:
        if request.session.testsfailed > failed:
            capture = request.config.pluginmanager.getplugin("capturemanager")
            with capture.global_and_fixture_disabled():
                print(cluster("logs", "--no-color", "--tail=60"))
        cluster("down", "--volumes", "--remove-orphans", "--timeout=30")


@pytest.fixture(scope="module")
def client(compose: Compose) -> Iterator[lockstep.Client]:
    with lockstep.Client(compose.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def local() -> Iterator[lockstep.Client]:
    with lockstep.LocalCluster(workers=2, data_root=ROOT) as connected:
        yield connected


def test_the_file_is_valid_for_every_compose_there_is() -> None:
    run("docker-compose", "config", "--quiet")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        run("docker", "compose", "config", "--quiet")


def test_services_are_healthy_and_not_root(compose: Compose) -> None:
    containers = compose.containers()
    assert sorted(c["Config"]["Labels"]["com.docker.compose.service"] for c in containers) == SERVICES
    for container in containers:
        name = container["Name"].removeprefix("/")
        assert container["State"].get("Health", {"Status": "healthy"})["Status"] == "healthy", name
        assert run("docker", "exec", name, "id", "-u").strip() != "0"
        published = [binding for port in container["NetworkSettings"]["Ports"].values() for binding in port or []]
        assert {binding["HostIp"] for binding in published} <= {"127.0.0.1"}


def test_a_job_from_the_shell_has_the_bits_of_the_local_cluster(
    compose: Compose, client: lockstep.Client, local: lockstep.Client
) -> None:
    run(
        sys.executable,
        "-m",
        "lockstep.cli",
        "submit",
        "examples/digits.toml",
        "--watch",
        "--timeout=120",
        LOCKSTEP_SERVER=compose.address,
    )
    (job,) = client.list(limit=1)
    assert job.state == lockstep.JobState.SUCCEEDED
    assert_same_bits(job, local.submit(ROOT / "examples/digits.toml").wait(timeout_s=120.0))


def test_prometheus_has_the_losses_of_a_job_from_python(compose: Compose, client: lockstep.Client) -> None:
    job = client.submit(ROOT / "examples/digits.toml").wait(timeout_s=120.0)
    assert job.digest == client.list(limit=2)[1].digest
    deadline_s = time.monotonic() + 30.0
    expected = {"training": job.history.steps["loss"][-1], "validation": job.history.epochs["validation_loss"][-1]}
    while True:
        found = compose.query(f'lockstep_job_loss{{job_id="{job.id}"}}')
        values = {sample["metric"]["split"]: float(sample["value"][1]) for sample in found}
        if values == expected:
            break
        assert time.monotonic() < deadline_s, f"{values} instead of {expected}"
        time.sleep(0.5)  # it asks the server every 2 s


def test_a_job_reads_a_file_below_the_mounted_data_root(client: lockstep.Client, local: lockstep.Client) -> None:
    path = ROOT / "examples/digits-path.toml"
    assert_same_bits(client.submit(path).wait(timeout_s=120.0), local.submit(path).wait(timeout_s=120.0))


def test_scaling_the_workers_of_a_running_job_leaves_its_bits_alone(
    compose: Compose, client: lockstep.Client, local: lockstep.Client
) -> None:
    job = client.submit(ENDLESS)
    until(client, job, workers=1, beyond=100)
    for workers in (3, 1):
        compose("up", "--detach", "--no-recreate", "--scale", f"ray-worker={workers}")
        scaled = until(client, job, workers=workers)
        until(client, job, workers=workers, beyond=scaled.step + 100)
    job.stop()
    job.wait(timeout_s=60.0)
    assert job.state == lockstep.JobState.STOPPED
    assert_same_bits(job, local.submit(ENDLESS | {"steps": job.step}).wait(timeout_s=240.0))


def test_the_end_of_the_fleet_or_of_the_head_restarts_their_container_and_the_job_goes_on(
    compose: Compose, client: lockstep.Client, local: lockstep.Client
) -> None:
    job = client.submit(ENDLESS)
    for restarts, process in enumerate(["bin/lockstep-fleet", "bin/ray start"], start=1):
        before = until(client, job, workers=1, beyond=0)
        compose("exec", "-T", "ray-head", "python", "-c", KILL, process)
        until(client, job, workers=0)
        until(client, job, workers=1, beyond=before.step + 100)
        assert compose.service("ray-head")["RestartCount"] == restarts
    job.stop()
    job.wait(timeout_s=60.0)
    assert_same_bits(job, local.submit(ENDLESS | {"steps": job.step}).wait(timeout_s=240.0))


def test_every_service_stops_in_order_under_a_running_job(compose: Compose, client: lockstep.Client) -> None:
    job = client.submit(ENDLESS)
    until(client, job, workers=1, beyond=100)
    compose("stop")
    for service in SERVICES:
        assert compose.service(service)["State"]["ExitCode"] == 0, service
    assert compose.service("server")["RestartCount"] == 0
    compose("down", "--volumes")
    assert compose.containers() == []
