"""The verbs of clients, on fake runs and a clock that stands still."""

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lockstep_proto.layout import Layout, digest
from lockstep_proto.v1 import service_pb2
from lockstep_server.errors import (
    DiskFullError,
    IllegalTransitionError,
    InvalidRequestError,
    InvalidSpecError,
    JobNotFoundError,
    ShuttingDownError,
    StorageError,
)
from lockstep_server.initial import initial_parameters
from lockstep_server.job_files import Which
from lockstep_server.lifecycle import State
from lockstep_server.store import Batch, Store
from tests.server.fakes import FINGERPRINT, NUM_PARAMETERS, Bench, digest_of_version, make_spec, play, turn

PENDING, RUNNING, PAUSED = State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING, State.JOB_STATE_PAUSED
SUCCEEDED, FAILED, STOPPED = State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_STOPPED


# Submission


def test_the_same_request_makes_one_job_even_at_once_and_after_a_restart(tmp_path: Path) -> None:
    made: list[str] = []

    async def first(server: Bench) -> None:
        made.extend(await asyncio.gather(*(server.submit("request-1") for _ in range(3))))
        made.append(await server.submit("request-1"))

    async def second(server: Bench) -> None:
        made.append(await server.submit("request-1"))
        made.append(await server.submit("request-2"))

    play(tmp_path, first)
    play(tmp_path, second)
    assert len(set(made[:5])) == 1
    assert made[5] != made[0]


def test_requests_without_an_id_make_a_job_each(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        assert len({await server.submit(), await server.submit()}) == 2

    play(tmp_path, scene)


def test_a_caller_that_gives_up_does_not_undo_its_job(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        call = asyncio.create_task(server.submit("request"))
        await asyncio.sleep(0)
        call.cancel()
        job_id = await server.submit("request")
        assert [job.id for job in server.jobs.list((), 0)] == [job_id]

    play(tmp_path, scene)


def test_a_wrong_spec_is_refused_with_all_its_violations(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        wrong = make_spec(shards=0)
        wrong.network.layers[0].units = 0
        with pytest.raises(InvalidSpecError) as caught:
            await server.jobs.submit("", wrong)
        assert {violation.path for violation in caught.value.violations} == {"shards", "network.layers[0].units"}
        assert server.jobs.list((), 0) == []

    play(tmp_path, scene)


def test_uploads_that_are_missing_are_violations(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        spec = make_spec()
        spec.data.upload = "0" * 64 + ".csv"
        spec.start_from.model = "../secret"
        with pytest.raises(InvalidSpecError) as caught:
            await server.jobs.submit("", spec)
        said = {violation.path: violation.message for violation in caught.value.violations}
        assert "the server has no upload 0000" in said["data.upload"]
        assert "is not a SHA-256" in said["start_from.model"]

    play(tmp_path, scene)


def test_a_job_the_disk_did_not_take_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(server: Bench) -> None:
        async def full() -> None:
            raise DiskFullError("the server's disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(server.journal, "flush", full)
            with pytest.raises(DiskFullError):
                await server.submit("request")
        assert server.jobs.list((), 0) == []
        await server.submit("request")
        assert len(server.jobs.list((), 0)) == 1

    play(tmp_path, scene)


class LosesAnswers:
    """A store that writes what it is given, and then says that it could not."""

    def __init__(self, store: Store, *, deletes: bool) -> None:
        self._store, self._deletes = store, deletes

    def write(self, batch: Batch) -> None:
        self._store.write(batch)
        raise sqlite3.OperationalError("disk I/O error")

    def delete(self, job_id: str) -> None:
        if not self._deletes:
            raise sqlite3.OperationalError("disk I/O error")
        self._store.delete(job_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_job_on_disk_whose_client_was_told_of_an_error_is_found_by_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(server: Bench) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(server.journal, "_store", LosesAnswers(server.journal._store, deletes=False))
            with pytest.raises(StorageError):
                await server.submit("request")
        (stored,) = server.journal._store.jobs()
        server.fleet(1)
        assert await server.submit("request") == stored.job.id
        await server.load(stored.job.id)
        assert (await server.events(stored.job.id))[:2] == ["submitted", "running"]

    play(tmp_path, scene)


def test_a_job_whose_client_was_told_of_an_error_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(server: Bench) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(server.journal, "_store", LosesAnswers(server.journal._store, deletes=True))
            with pytest.raises(StorageError):
                await server.submit("request")
        assert server.journal._store.jobs() == []

    play(tmp_path, scene)


def test_a_server_that_goes_down_takes_nothing_new(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.jobs.close()
        with pytest.raises(ShuttingDownError, match="submit again when it is back"):
            await server.submit()

    play(tmp_path, scene)


def test_a_long_request_id_is_refused(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        with pytest.raises(InvalidRequestError, match="request_id may have 64 characters, got 65"):
            await server.submit("x" * 65)

    play(tmp_path, scene)


# Finding


def test_ids_may_be_shortened_as_long_as_they_are_unique(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        ids = iter(["abcd11110000", "abcd22220000", "ffff00000000"])
        server.jobs._submission._make_id = lambda: next(ids)
        for _ in range(3):
            await server.submit()
        assert server.jobs.get("ffff").id == "ffff00000000"
        assert server.jobs.get("abcd1").id == "abcd11110000"
        with pytest.raises(InvalidRequestError, match=r"ambiguous: abcd11110000 \(small\), abcd22220000 \(small\)"):
            server.jobs.get("abcd")
        with pytest.raises(InvalidRequestError, match="at least 4 characters, got 'fff'"):
            server.jobs.get("fff")
        with pytest.raises(JobNotFoundError, match="there is no job 0000"):
            server.jobs.get("0000")

    play(tmp_path, scene)


def test_jobs_are_listed_newest_first_by_state_up_to_a_limit(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        first, second, third = [await server.submit() for _ in range(3)]
        assert [job.id for job in server.jobs.list((), 0)] == [third, second, first]
        assert [job.id for job in server.jobs.list({PENDING}, 0)] == [third, second]
        assert [job.id for job in server.jobs.list((), 1)] == [third]

    play(tmp_path, scene)


# Stop, pause, resume, delete


def test_a_job_with_workers_is_stopped_by_its_run_between_versions(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(2)
        stopping = asyncio.create_task(server.jobs.stop(job_id))
        while not run.asked:
            await turn()
        assert run.asked == ["stop"]
        assert not stopping.done()
        run.train(1)
        run.end(STOPPED, stop_reason=service_pb2.STOP_REASON_USER, message="stopped by a person")
        job = await stopping
        assert job.state == STOPPED
        assert job.digest == digest_of_version(3)
        assert (await server.jobs.stop(job_id)).state == STOPPED  # as it is

    play(tmp_path, scene)


def test_a_job_without_workers_is_stopped_at_once(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.train(2)
        assert (await server.jobs.stop(job_id)).digest == digest_of_version(2)
        pending = await server.submit(workers__min=2)
        assert (await server.jobs.stop(pending)).state == STOPPED
        assert server.jobs.get(pending).digest == ""

    play(tmp_path, scene)


def test_a_stop_that_takes_its_time_is_answered_before(tmp_path: Path) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.patience_s = 0.0
        server.open()
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        assert (await server.jobs.stop(job_id)).state == RUNNING
        run.end(STOPPED)
        await server.state(job_id, STOPPED)
        await server.close()

    asyncio.run(life())


def test_a_paused_job_gives_up_its_workers_and_goes_on_from_its_version(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(5)
        pausing = asyncio.create_task(server.jobs.pause(job_id))
        while not run.asked:
            await turn()
        assert run.asked == ["pause"]
        run.end(PAUSED)
        assert (await pausing).state == PAUSED
        assert (await server.jobs.pause(job_id)).state == PAUSED
        assert server.orders() == {}
        assert server.scheduler.run(job_id) is None
        assert (await server.jobs.resume(job_id)).state == RUNNING
        again = await server.running(job_id)  # its data are known: it does not wait for them
        assert again is not run
        assert again.start is not None
        assert again.start.parameters.tolist() == [5.0] * NUM_PARAMETERS
        assert again.arguments["attempt"] == 2
        assert again.arguments["numerics"] == FINGERPRINT  # held to its own
        assert server.jobs.get(job_id).loss == 1 / 5  # of the last step, until there is another
        assert server.orders() == {job_id: 1}

    play(tmp_path, scene)


def test_a_resumed_job_has_its_old_place(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        first, second, third = [await server.submit() for _ in range(3)]
        await server.jobs.pause(first)
        assert server.jobs.get(second).state == RUNNING
        assert (await server.jobs.resume(first)).state == PENDING
        assert (await server.jobs.resume(first)).state == PENDING
        assert server.jobs.get(first).phase == "waiting for workers: 0 of 1 (the cluster has room for 1)"
        assert server.jobs.get(third).phase == "queued behind 1 job"
        await server.jobs.stop(second)
        assert server.jobs.get(first).state == RUNNING

    play(tmp_path, scene)


def test_a_paused_job_that_is_stopped_keeps_the_model_it_had(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        (await server.load(job_id)).train(4)
        await server.jobs.pause(job_id)
        assert (await server.jobs.stop(job_id)).digest == digest_of_version(4)
        assert server.jobs.model(job_id, Which.WHICH_MODEL_LAST).exists()

    play(tmp_path, scene)


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_an_ended_job_cannot_do_is_refused_with_its_state(tmp_path: Path, verb: str) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        await server.jobs.stop(job_id)
        with pytest.raises(IllegalTransitionError, match=f"job {job_id} .*stopped"):
            await getattr(server.jobs, verb)(job_id)

    play(tmp_path, scene)


def test_a_job_in_the_queue_cannot_be_paused(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        job_id = await server.submit()
        with pytest.raises(IllegalTransitionError, match="is pending; only a running job can be paused"):
            await server.jobs.pause(job_id)

    play(tmp_path, scene)


def test_delete_frees_files_and_the_uploads_only_it_has_named(tmp_path: Path) -> None:
    shared, own = "0" * 64 + ".csv", "1" * 64 + ".csv"

    async def scene(server: Bench) -> None:
        for upload_id in (shared, own):
            (tmp_path / "uploads" / upload_id).write_bytes(b"x" * 1000)
        server.fleet(2)
        specs = [make_spec(), make_spec()]
        for spec in specs:
            spec.data.upload = shared
        specs[0].validation.upload = own
        specs[0].validation.target.append("y")
        first, second = [(await server.jobs.submit("", spec)).id for spec in specs]
        (await server.load(first)).train(3)
        await server.jobs.stop(first)
        size = sum(path.stat().st_size for path in (tmp_path / "jobs").rglob("*.safetensors"))
        assert await server.jobs.delete(first) == size + 1000
        assert os.listdir(tmp_path / "uploads") == [shared]
        assert os.listdir(tmp_path / "jobs") == []
        with pytest.raises(JobNotFoundError):
            server.jobs.get(first)
        assert await server.jobs.delete(second) == 1000
        assert os.listdir(tmp_path / "uploads") == []

    play(tmp_path, scene)


def test_delete_stops_a_running_job_first_even_one_that_does_not_react(tmp_path: Path) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.patience_s = 0.0
        server.open()
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(3)
        assert await server.jobs.delete(job_id) > 0
        run.train(1)  # what comes late is not heard
        run.listener.event(service_pb2.SEVERITY_WARNING, "worker w1 is gone")
        await server.journal.flush()
        assert server.orders() == {}
        assert server.jobs.list((), 0) == []
        await server.close()
        server.open()
        assert server.jobs.list((), 0) == []
        await server.close()

    asyncio.run(life())


# What was asked for outlives a server that is killed


async def killed(server: Bench) -> None:
    """The server dies as by kill -9, what was answered being on disk, and another takes its place."""
    unwritten = server.journal._batch
    unwritten.jobs.clear()
    unwritten.events.clear()
    await server.journal.close()
    server.open()


@pytest.mark.parametrize(("verb", "state"), [("stop", STOPPED), ("pause", PAUSED)])
def test_an_answered_wish_outlives_the_server(tmp_path: Path, verb: str, state: State.ValueType) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.patience_s = 0.0
        server.open()
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(4)
        await run.keep()
        assert (await getattr(server.jobs, verb)(job_id)).state == RUNNING  # asked, and answered before it came to it
        await killed(server)
        job = await server.state(job_id, state)
        assert job.step == 4
        assert job.digest == (digest_of_version(4) if state == STOPPED else "")
        assert server.directory.find(job_id).wish == ""
        await server.close()

    asyncio.run(life())


def test_a_stop_that_a_killed_server_had_answered_before_any_checkpoint_leaves_a_model(tmp_path: Path) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.patience_s = 0.0
        server.open()
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(4)
        assert (await server.jobs.stop(job_id)).state == RUNNING
        await killed(server)
        job = await server.state(job_id, STOPPED)
        assert job.step == 0, "what was computed is gone with the server; what the job began from is not"
        assert job.digest == digest(Layout.from_spec(job.spec), initial_parameters(job.spec))
        assert server.jobs.model(job_id, service_pb2.WHICH_MODEL_LAST).exists()
        await server.close()

    asyncio.run(life())


def test_a_stop_of_a_job_that_never_ran_leaves_no_model(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        job = await server.jobs.stop(await server.submit())
        assert (job.state, job.digest) == (STOPPED, "")

    play(tmp_path, scene)


def test_a_resume_before_the_pause_has_come_is_not_lost(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.patience_s = server.jobs._patience_s = 0.0
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(3)
        assert (await server.jobs.pause(job_id)).state == RUNNING
        assert (await server.jobs.resume(job_id)).state == RUNNING
        run.end(PAUSED)  # the version under way is done
        while server.runs[job_id] is run:
            await turn()
        assert server.runs[job_id].step == 3
        assert server.jobs.get(job_id).state == RUNNING
        assert "resumed" in await server.events(job_id)

    play(tmp_path, scene)


@pytest.mark.parametrize("paused", [False, True])
def test_a_resume_of_a_pending_pause_outlives_the_server(tmp_path: Path, paused: bool) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.patience_s = 0.0
        server.open()
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(3)
        await run.keep()
        await server.jobs.pause(job_id)
        await server.jobs.resume(job_id)
        if paused:  # killed after the pause had come, before the resume
            record = server.directory.find(job_id)
            record.move(PAUSED, server.now)
            server.journal.job(record.stored())
            await server.journal.flush()
        await killed(server)
        server.fleet(1)
        again = await server.running(job_id)
        assert (again.step, again.arguments["attempt"]) == (3, 2)
        assert server.jobs.get(job_id).state == RUNNING
        assert server.directory.find(job_id).wish == ""
        await server.close()

    asyncio.run(life())


def test_a_stop_that_follows_a_pause_is_not_lost(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.jobs._patience_s = 0.0
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(3)
        await server.jobs.pause(job_id)
        await server.jobs.stop(job_id)
        run.end(PAUSED)  # what it was asked first
        assert (await server.state(job_id, STOPPED)).digest == digest_of_version(3)

    play(tmp_path, scene)


@pytest.mark.parametrize("verb", ["stop", "pause"])
def test_what_could_not_be_stored_is_not_answered(tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        await server.load(job_id)
        server.jobs._patience_s = 0.05
        with monkeypatch.context() as patch:
            patch.setattr(server.journal._store, "write", refuse_full)
            with pytest.raises(DiskFullError):
                await getattr(server.jobs, verb)(job_id)
        await server.state(job_id, STOPPED if verb == "stop" else PAUSED)  # done all the same, once there is room

    play(tmp_path, scene)


# A job that cannot be deleted


def refuse_full(_: object) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    raise error


def test_a_delete_that_fails_leaves_the_job_where_it_can_be_deleted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(server: Bench) -> None:
        def refuse(_: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        server.fleet(1)
        job_id = await server.submit()
        (await server.load(job_id)).train(3)
        with monkeypatch.context() as patch:
            patch.setattr(server.journal._store, "delete", refuse)
            with pytest.raises(StorageError):
                await server.jobs.delete(job_id)
        assert server.jobs.get(job_id).digest == digest_of_version(3)
        assert server.jobs.model(job_id, Which.WHICH_MODEL_LAST).exists()
        await server.jobs.delete(job_id)
        with pytest.raises(JobNotFoundError):
            server.jobs.get(job_id)

    play(tmp_path, scene)


def test_a_full_disk_does_not_keep_anybody_from_making_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        (await server.load(job_id)).train(3)
        await server.jobs.stop(job_id)
        directory, delete = tmp_path / "jobs" / job_id, server.journal._store.delete
        monkeypatch.setattr(
            server.journal._store, "delete", lambda one: refuse_full(one) if directory.exists() else delete(one)
        )
        assert await server.jobs.delete(job_id) > 0
        assert server.jobs.list((), 0) == []

    play(tmp_path, scene)
