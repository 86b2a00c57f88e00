"""A compose cluster of its own for tests: its project, its ports, what its containers are and what they run."""

import contextlib
import json
import os
import secrets
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lockstep
from tests.client.servers import free_port

ROOT = Path(__file__).parents[2]

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

    @property
    def network(self) -> str:
        return f"{self.project}_default"

    def containers(self) -> list[dict[str, Any]]:
        """What `docker inspect` says of each of them, stopped ones too."""
        ids = self.ids()
        return list(json.loads(run("docker", "inspect", *ids))) if ids else []

    def ids(self, service: str = "") -> list[str]:
        """The containers of a service, or all; stopped ones too."""
        labels = [f"com.docker.compose.project={self.project}"]
        labels += [f"com.docker.compose.service={service}"] if service else []
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        return sorted(run("docker", "ps", "--all", "--quiet", *filters).split())

    def service(self, name: str) -> dict[str, Any]:
        """What `docker inspect` says of the one container of a service."""
        (container,) = json.loads(run("docker", "inspect", *self.ids(name)))
        return dict(container)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an expression now: the newest value of each series."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.prometheus_port}/api/v1/query?{query}") as answer:
            return list(json.load(answer)["data"]["result"])


@contextlib.contextmanager
def cluster(request: pytest.FixtureRequest, *services: str, workers: int = 1) -> Iterator[Compose]:
    """A cluster that is up, its logs if tests failed meanwhile, and its end with all that it left."""
    compose = Compose(f"lockstep-test-{secrets.token_hex(4)}", free_port(), free_port(), free_port())
    failed = request.session.testsfailed
    try:
        compose("up", "--detach", "--scale", f"ray-worker={workers}", *services)
        yield compose
    finally:
        if request.session.testsfailed > failed:
            capture = request.config.pluginmanager.getplugin("capturemanager")
            with capture.global_and_fixture_disabled():
                print(compose("logs", "--no-color", "--tail=60"))
        compose("down", "--volumes", "--remove-orphans", "--timeout=30")


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
