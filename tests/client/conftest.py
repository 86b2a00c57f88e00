"""One local cluster of one worker for all tests of the client, and jobs for it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lockstep
from lockstep import cli
from tests.client.samples import SPEC, Ran, Run, X, Y


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cluster's workers read files by path."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cluster's server keeps its files."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def client(data_root: Path, state_dir: Path) -> Iterator[lockstep.Client]:
    with lockstep.LocalCluster(workers=1, data_root=data_root, state_dir=state_dir) as connected:
        yield connected


@pytest.fixture(autouse=True)
def _no_cluster_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cluster that the person at this machine has up is none of the tests' business."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("LOCKSTEP_SERVER", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the `lockstep` command in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def submit(client: lockstep.Client) -> Iterator[Callable[..., lockstep.Job]]:
    """Submits jobs with data, and deletes them after the test."""
    jobs: list[lockstep.Job] = []

    def submit(spec: Any = SPEC, **changes: Any) -> lockstep.Job:
        jobs.append(client.submit(spec | changes, data=(X, Y)))
        return jobs[-1]

    yield submit
    for job in jobs:
        with contextlib.suppress(lockstep.NotFoundError):
            job.delete()


@pytest.fixture(scope="session")
def trained(client: lockstep.Client) -> lockstep.Job:
    """A job that has succeeded, with validation. Nobody deletes it."""
    return client.submit(SPEC | {"name": "trained"}, data=(X, Y), validation=(X[:9], Y[:9])).wait(timeout_s=60)
