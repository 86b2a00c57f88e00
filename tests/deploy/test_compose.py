"""The compose cluster, from outside: its ports on loopback are all that these tests use of it."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import lockstep
from lockstep_proto import numerics
from tests.deploy.compose import ENDLESS, ROOT, Compose, cluster, run, until

SERVICES = ["prometheus", "ray-head", "ray-worker", "server"]

pytestmark = [pytest.mark.docker, pytest.mark.cluster, pytest.mark.timeout(600)]

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


def assert_same_bits(job: lockstep.Job, reference: lockstep.Job) -> None:
    for field in ("numerics", "server_numerics"):
        assert numerics.difference(getattr(job, field), getattr(reference, field)) is None
    assert job.digest == reference.digest


@pytest.fixture(scope="module")
def compose(request: pytest.FixtureRequest, image: None) -> Iterator[Compose]:
    with cluster(request) as up:
        yield up


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
