"""Jobs that start from others: what is refused, what is made explicit, and what is held of the source."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_server import job_files
from lockstep_server.admission import too_large
from lockstep_server.errors import DiskFullError, InvalidSpecError
from lockstep_server.lifecycle import State
from tests.server.fakes import NUM_PARAMETERS, Bench, FakeRun, digest_of_version, make_spec, play, turn

RUNNING, SUCCEEDED = State.JOB_STATE_RUNNING, State.JOB_STATE_SUCCEEDED


def starting_from(**source: Any) -> job_pb2.JobSpec:
    spec = make_spec()
    spec.start_from.CopyFrom(job_pb2.StartFrom(**source))
    return spec


async def trained(server: Bench, *, versions: tuple[int, ...] = (2, 4)) -> FakeRun:
    """A job that keeps checkpoints of these versions and still runs, with the data "d"."""
    server.fleet(4)
    run = await load(server, await server.submit())
    for version in versions:
        run.train(version - run.step)
        run.progress = {"epoch": 1, "step_in_epoch": version, "validation_loss": 1.0 / version}
        run.best_parameters = np.full(NUM_PARAMETERS, version - 1, np.float32)
        await run.keep()
    return run


async def load(server: Bench, job_id: str, fingerprint: str = "d") -> FakeRun:
    told = training_pb2.DataLoaded(job_id=job_id, num_rows=100, data_fingerprint=fingerprint)
    server.scheduler.data_loaded(told)
    return await server.running(job_id)


async def refused(server: Bench, spec: job_pb2.JobSpec) -> tuple[str, str]:
    before = len(server.jobs.list((), 0))
    with pytest.raises(InvalidSpecError) as caught:
        await server.jobs.submit("", spec)
    assert len(server.jobs.list((), 0)) == before
    (violation,) = caught.value.violations
    return violation.path, violation.message


def test_the_newest_checkpoint_is_made_explicit_and_taken_over(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        source = await trained(server)
        job = await server.jobs.submit("", starting_from(job=source.job_id[:6]))
        assert (job.spec.start_from.job, job.spec.start_from.version) == (source.job_id, 4)
        assert job.started_from_job == source.job_id
        run = await load(server, job.id)
        assert run.start.parameters.tolist() == [4.0] * NUM_PARAMETERS
        assert run.step == server.jobs.get(job.id).start_version == 4
        words = f"starts from job {source.job_id} at version 4: parameters, position (epoch 0, step 4)"
        assert words in await server.events(job.id)
        (entry,) = [entry async for piece in server.jobs.ledger(job.id) for entry in piece.entries]
        assert (entry.version, entry.digest) == (4, digest_of_version(4))

    play(tmp_path, scene)


def test_a_kept_version_may_be_named(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        source = await trained(server)
        job = await server.jobs.submit("", starting_from(job=source.job_id, version=2))
        run = await load(server, job.id, fingerprint="other")
        assert run.start.parameters.tolist() == [2.0] * NUM_PARAMETERS
        assert run.step == server.jobs.get(job.id).start_version == 0
        assert "not the position: data d there, other here" in (await server.events(job.id))[-1]

    play(tmp_path, scene)


def test_the_best_of_an_ended_job_is_its_parameters_alone(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        source = await trained(server)
        best = starting_from(job=source.job_id, best=True)
        path, message = await refused(server, best)
        assert path == "start_from.best"
        assert message == f"job {source.job_id} has not ended, and its best may still change; give a version"
        source.end(SUCCEEDED)
        await server.state(source.job_id, SUCCEEDED)
        run = await load(server, (await server.jobs.submit("", best)).id)
        assert run.start.parameters.tolist() == [3.0] * NUM_PARAMETERS
        assert run.step == 0

    play(tmp_path, scene)


def test_what_it_starts_from_outlives_its_source_and_a_killed_server(tmp_path: Path) -> None:
    source_and_job: list[str] = []

    async def first(server: Bench) -> None:
        source = await trained(server)
        job_id = (await server.jobs.submit("", starting_from(job=source.job_id, version=2))).id
        source_and_job.extend([source.job_id, job_id])
        size = server.files(source.job_id).checkpoint(2).stat().st_size
        whole = sum(path.stat().st_size for path in (tmp_path / "jobs" / source.job_id).rglob("*") if path.is_file())
        source.end(SUCCEEDED)
        await server.state(source.job_id, SUCCEEDED)
        models = sum(path.stat().st_size for path in (tmp_path / "jobs" / source.job_id).glob("*.safetensors"))
        assert await server.jobs.delete(source.job_id) == whole + models - size  # what the other holds is not free

    async def second(server: Bench) -> None:
        _, job_id = source_and_job
        run = await load(server, job_id)
        assert run.start.parameters.tolist() == [2.0] * NUM_PARAMETERS
        run.train(1)
        run.end(SUCCEEDED)
        await server.state(job_id, SUCCEEDED)
        while server.files(job_id).start.exists():
            await turn()

    play(tmp_path, first)
    play(tmp_path, second)


def test_a_held_file_that_is_damaged_fails_the_job_by_name(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        source = await trained(server)
        job_id = (await server.jobs.submit("", starting_from(job=source.job_id))).id
        held = server.files(job_id).start
        held.write_bytes(held.read_bytes()[:-1])
        server.scheduler.data_loaded(training_pb2.DataLoaded(job_id=job_id, num_rows=100))
        job = await server.state(job_id, State.JOB_STATE_FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_DATA_INVALID
        assert job.message.startswith("start_from.job cannot be used: ")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("source", "path", "words"),
    [
        ({"job": "ffff00000000"}, "start_from.job", "there is no job ffff00000000"),
        ({"job": "ff"}, "start_from.job", "a job id needs at least 4 characters"),
        ({"version": 3}, "start_from.version", "keeps the checkpoints 2, 4; got 3"),
    ],
)
def test_what_cannot_be_started_from_is_refused(tmp_path: Path, source: dict[str, Any], path: str, words: str) -> None:
    async def scene(server: Bench) -> None:
        made = await trained(server)
        found, message = await refused(server, starting_from(**({"job": made.job_id} | source)))
        assert found == path
        assert words in message

    play(tmp_path, scene)


def test_a_job_of_another_shape_or_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        source = await trained(server, versions=())
        spec = starting_from(job=source.job_id)
        assert await refused(server, spec) == ("start_from.job", f"job {source.job_id} has no checkpoint yet")
        spec.dtype = job_pb2.DTYPE_FLOAT64
        words = f"job {source.job_id} has the shape 3-2 float32, this one has 3-2 float64; they must be equal"
        assert await refused(server, spec) == ("start_from.job", words)

    play(tmp_path, scene)


def test_a_checkpoint_that_is_dropped_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError

    async def scene(server: Bench) -> None:
        source = await trained(server)
        monkeypatch.setattr(os, "link", gone)
        path, message = await refused(server, starting_from(job=source.job_id))
        assert os.listdir(tmp_path / "jobs") == [source.job_id]
        assert (path, message.endswith("has just dropped the checkpoint of version 4; try again")) == (
            "start_from.job",
            True,
        )

    play(tmp_path, scene)


def test_a_disk_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(next(iter(job_files.NO_LINKS)), "no links here")

    async def scene(server: Bench) -> None:
        source = await trained(server)
        monkeypatch.setattr(os, "link", refuse)
        run = await load(server, (await server.jobs.submit("", starting_from(job=source.job_id))).id)
        assert run.step == 4

    play(tmp_path, scene)


def test_a_job_that_is_not_stored_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(server: Bench) -> None:
        async def full() -> None:
            raise DiskFullError("the server's disk is full")

        source = await trained(server)
        with monkeypatch.context() as patch:
            patch.setattr(server.journal, "flush", full)
            with pytest.raises(DiskFullError):
                await server.jobs.submit("", starting_from(job=source.job_id))
        assert os.listdir(tmp_path / "jobs") == [source.job_id]

    play(tmp_path, scene)


def test_a_network_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        spec = make_spec()
        spec.network.inputs = spec.network.layers[0].units = 2**30
        path, message = await refused(server, spec)
        assert path == "network"
        assert message.startswith(f"has {2**60 + 2**30} parameters, which take 9223372045.4 GB")

    play(tmp_path, scene)


def test_the_optimizer_state_counts_against_the_memory() -> None:
    spec = make_spec()
    spec.optimizer.adam.SetInParent()
    needed = NUM_PARAMETERS * 4 * 2 * 3
    assert too_large(spec, memory_bytes=needed) == []
    assert len(too_large(spec, memory_bytes=needed - 1)) == 1
