"""One job through its attempts to its saved model, in good days and bad."""

import asyncio
import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server import checkpoints, keeper
from lockstep_server.errors import (
    NoModelError,
)
from lockstep_server.job_files import Which
from lockstep_server.lifecycle import State
from lockstep_server.records import Outcome
from lockstep_server.store import Store
from tests.server.fakes import (
    FINGERPRINT,
    NUM_PARAMETERS,
    Bench,
    FakeRun,
    digest_of_version,
    make_spec,
    play,
    turn,
    whole,
)

PENDING, RUNNING, PAUSED = State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING, State.JOB_STATE_PAUSED
SUCCEEDED, FAILED, STOPPED = State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_STOPPED


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, name, refuse)


# From submission to the end


def test_a_job_goes_from_the_queue_to_its_saved_model(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        job_id = await server.submit()
        assert server.jobs.get(job_id).state == PENDING
        assert server.jobs.get(job_id).phase == "waiting for a fleet"
        server.fleet(2)
        assert server.jobs.get(job_id).state == RUNNING
        assert server.jobs.get(job_id).phase == "loading data"
        assert server.orders() == {job_id: 2}
        run = await server.load(job_id, num_rows=100, num_validation_rows=10)
        run.join("w1")
        run.train(3)
        job = server.jobs.get(job_id)
        assert (job.phase, job.step, job.num_steps, job.num_workers) == ("step 3 of 100", 3, 100, 1)
        assert (job.num_rows, job.num_validation_rows, job.attempt) == (100, 10, 1)
        assert job.numerics == job.server_numerics == FINGERPRINT
        run.end(SUCCEEDED, stop_reason=service_pb2.STOP_REASON_EPOCHS, message="all 2 epochs are done")
        job = await server.state(job_id, SUCCEEDED)
        assert job.message == "all 2 epochs are done"
        assert job.stop_reason == service_pb2.STOP_REASON_EPOCHS
        assert job.digest == digest_of_version(3)
        assert job.num_workers == 0
        assert job.HasField("finished")
        assert run.closed
        assert server.orders() == {}
        saved = checkpoints.read_model(server.jobs.model(job_id, Which.WHICH_MODEL_LAST), make_spec())
        assert saved.tolist() == [3.0] * NUM_PARAMETERS
        assert await server.events(job_id) == [
            "submitted",
            "running",
            "data loaded: 100 rows, 10 for validation",
            "taken up at version 0 (attempt 1)",
            "succeeded at step 3: all 2 epochs are done",
        ]

    play(tmp_path, scene)


def test_the_history_is_what_the_run_recorded(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.train(3)
        history = await whole(server.jobs.history(job_id))
        assert list(history.steps.step) == [0, 1, 2]
        assert list(history.steps.loss) == [1.0, 1 / 2, 1 / 3]

    play(tmp_path, scene)


def test_a_best_model_is_saved_beside_the_last(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        first, second = await server.submit(), await server.submit()
        run = await server.load(first)
        run.train(2)
        run.best_parameters = np.full(NUM_PARAMETERS, 1, np.float32)
        run.end(SUCCEEDED)
        await server.state(first, SUCCEEDED)
        best = checkpoints.read_model(server.jobs.model(first, Which.WHICH_MODEL_BEST), make_spec())
        assert best.tolist() == [1.0] * NUM_PARAMETERS
        (await server.load(second)).end(SUCCEEDED)
        await server.state(second, SUCCEEDED)
        with pytest.raises(NoModelError, match="never evaluated on validation data"):
            server.jobs.model(second, Which.WHICH_MODEL_BEST)

    play(tmp_path, scene)


def test_metrics_are_told_of_states_and_queue(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        first, second = await server.submit(), await server.submit()
        states = {"pending": 1, "running": 1, "paused": 0, "succeeded": 0, "failed": 0, "stopped": 0}
        assert server.metrics.calls[-1] == ("jobs", states, 1)
        assert ("job_changed", first, "RUNNING") in server.metrics.calls
        (await server.load(first)).end(SUCCEEDED)
        await server.state(first, SUCCEEDED)
        assert ("job_ended", first) in server.metrics.calls
        assert ("job_changed", second, "RUNNING") in server.metrics.calls
        assert server.metrics.calls[-1][2] == 0

    play(tmp_path, scene)


# Failures


def test_a_failed_job_keeps_its_last_good_model(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.train(7)
        run.end(FAILED, error_type=service_pb2.ERROR_TYPE_NOT_FINITE, message="step 8, shard 2: the loss is nan")
        job = await server.state(job_id, FAILED)
        assert (job.error_type, job.digest) == (service_pb2.ERROR_TYPE_NOT_FINITE, digest_of_version(7))
        assert (await server.journal.events(job_id))[-1].severity == service_pb2.SEVERITY_ERROR

    play(tmp_path, scene)


def test_a_job_whose_model_the_disk_does_not_take_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SAVE_PATIENCE_S", 0.05)
    monkeypatch.setattr(keeper, "RETRY_S", 0.01)

    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.train(7)
        fill_disk(monkeypatch, "write_model")
        run.end(SUCCEEDED, message="all 2 epochs are done")
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_STORAGE
        assert "the server's disk is full: cannot save the model" in job.message
        assert f'its checkpoint of version 7, submit it with start_from = {{job = "{job_id}"}}' in job.message
        assert job.digest == ""
        assert [kept.version for kept in server.files(job_id).checkpoints()] == [7]

    play(tmp_path, scene)


def test_there_is_no_checkpoint_of_steps_whose_history_is_not_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.train(7)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", refuse)
            await run.keep()
        assert server.files(job_id).checkpoints() == []
        await run.keep()
        assert [kept.version for kept in server.files(job_id).checkpoints()] == [7]

    play(tmp_path, scene)


def test_a_disk_that_is_full_for_a_while_at_the_end_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_S", 0.01)

    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.train(7)
        with monkeypatch.context() as patch:
            fill_disk(patch, "write")
            run.end(SUCCEEDED)
            while "trying again for" not in server.jobs.get(job_id).phase:
                await turn()
            assert "saving: the server's disk is full: cannot write checkpoint" in server.jobs.get(job_id).phase
        job = await server.state(job_id, SUCCEEDED)
        assert job.digest == digest_of_version(7)
        assert [kept.version for kept in server.files(job_id).checkpoints()] == [7]

    play(tmp_path, scene)


def test_a_checkpoint_the_disk_does_not_take_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        with monkeypatch.context() as patch:
            fill_disk(patch, "write")
            for _ in range(3):
                run.train(1)
                await run.keep()
        (warning,) = [message for message in await server.events(job_id) if "disk is full" in message]
        assert "cannot write checkpoint 000000000001.safetensors" in warning
        assert warning.endswith("the job goes on without a checkpoint of version 1")
        assert server.jobs.get(job_id).state == RUNNING

    play(tmp_path, scene)


def test_a_defect_in_a_run_fails_its_job_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(server: Bench) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("oops")

        server.fleet(2)
        first, second = await server.submit(), await server.submit()
        server.make_run, whole = broken, server.make_run  # type: ignore[method-assign]
        object.__setattr__(server.scheduler._tools, "make_run", broken)
        server.scheduler.data_loaded(training_pb2.DataLoaded(job_id=first, num_rows=10))
        job = await server.state(first, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_INTERNAL
        assert job.message == "a defect in Lockstep: ZeroDivisionError('oops')"
        object.__setattr__(server.scheduler._tools, "make_run", whole)
        await server.load(second)

    play(tmp_path, scene)
    assert "a defect ended the job" in caplog.text


# A server that ends and starts


def test_a_running_job_is_taken_up_by_the_next_server_from_its_checkpoint(tmp_path: Path) -> None:
    job_ids: list[str] = []

    async def first(server: Bench) -> None:
        server.fleet(1)
        job_ids.append(await server.submit())
        run = await server.load(job_ids[0])
        run.join("w1")
        run.train(6)

    async def second(server: Bench) -> None:
        job_id = job_ids[0]
        assert server.jobs.get(job_id).state == RUNNING
        run = await server.running(job_id)  # before the fleet is back: its workers may be dialling already
        assert run.step == 6
        assert run.arguments["attempt"] == 2
        assert run.arguments["num_rows"] == 100
        server.fleet(1)
        assert server.orders() == {job_id: 1}
        assert list((await whole(server.jobs.history(job_id))).steps.step) == list(range(6))
        run.end(SUCCEEDED)
        assert (await server.state(job_id, SUCCEEDED)).digest == digest_of_version(6)
        assert "the server was away for 0.0 s; taken up at version 6 (attempt 2)" in await server.events(job_id)

    play(tmp_path, first)
    play(tmp_path, second)


def test_a_job_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.open()
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.train(6)
        drawn = run.start.parameters.tolist()
        await server.journal.close()  # killed: no checkpoint
        server.now += 3.25
        server.open()
        run = await server.running(job_id)
        assert run.start.parameters.tolist() == drawn
        assert run.start.version == 0
        assert run.arguments["attempt"] == 2
        assert run.arguments["numerics"] == FINGERPRINT  # held to those of its first worker
        words = "the server was away for 3.2 s; taken up at version 0 (attempt 2), which had reached 6"
        assert words in await server.events(job_id)
        await server.close()

    asyncio.run(life())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    job_ids: list[str] = []

    async def first(server: Bench) -> None:
        server.fleet(1)
        job_ids.append(await server.submit())
        run = await server.load(job_ids[0])
        for _ in range(4):
            run.train(1)
            await run.keep()

    async def second(server: Bench) -> None:
        run = await server.running(job_ids[0])
        assert run.step == 3
        (warning,) = [event for event in await server.events(job_ids[0]) if "000000000004.safetensors" in event]
        assert "going back to the one before it" in warning

    play(tmp_path, first)
    directory = tmp_path / "jobs" / job_ids[0] / "checkpoints"
    names = [f"{version:012d}.safetensors" for version in (2, 3, 4)]
    assert sorted(os.listdir(directory)) == names  # three are kept
    damage(directory / names[-1])
    (directory / f".{names[-1]}.tmp").write_bytes(b"half of it")  # as a killed server leaves it
    play(tmp_path, second)
    assert sorted(os.listdir(directory)) == [*names[:-1], names[-1] + ".damaged"]


def test_a_checkpoint_that_is_due_is_written_beside_the_training_and_told_of(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        directory = tmp_path / "jobs" / job_id / "checkpoints"
        run.train(1)
        await run.keep()
        written = directory / "000000000001.safetensors"
        ((_, told, _, num_bytes),) = [call for call in server.metrics.calls if call[0] == "checkpoint"]
        assert (told, num_bytes) == (job_id, written.stat().st_size)
        before = written.stat().st_mtime_ns
        await run.keep()
        assert written.stat().st_mtime_ns == before  # there is nothing new

    play(tmp_path, scene)


def test_the_newest_and_the_best_checkpoints_outlive_the_job(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        for loss in (None, 0.5, 0.2, 0.2, 0.3, 0.3, 0.4):
            run.train(1)
            run.progress = {"validation_loss": loss}
            await run.keep()
        run.train(1)
        run.end(SUCCEEDED)
        await server.state(job_id, SUCCEEDED)
        kept = server.files(job_id).checkpoints()
        assert [(one.version, one.validation_loss) for one in kept] == [(3, 0.2), (6, 0.3), (7, 0.4), (8, 0.4)]
        assert kept[-1].digest == server.jobs.get(job_id).digest == digest_of_version(8)
        assert kept[-1].origin.spec == server.jobs.get(job_id).spec

    play(tmp_path, scene)


def test_the_history_of_a_checkpoints_steps_is_on_disk_before_it(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.train(3)
        await run.keep()
        assert list(server.journal._store.history(job_id).steps.step) == [0, 1, 2]

    play(tmp_path, scene)


def test_the_places_of_the_queue_outlive_the_server(tmp_path: Path) -> None:
    made: list[str] = []

    async def first(server: Bench) -> None:
        made.extend([await server.submit(), await server.submit()])

    async def second(server: Bench) -> None:
        made.append(await server.submit())
        server.fleet(1)
        assert [server.jobs.get(job_id).state for job_id in made] == [RUNNING, PENDING, PENDING]

    play(tmp_path, first)
    play(tmp_path, second)


@pytest.mark.parametrize("numerics", [job_pb2.NUMERICS_EXACT, job_pb2.NUMERICS_ANY])
def test_a_job_is_held_to_the_numerics_of_the_server_that_began_it(
    tmp_path: Path,
    numerics: job_pb2.Numerics.ValueType,
) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.open()
        server.fleet(1)
        job_id = await server.submit(numerics=numerics)
        (await server.load(job_id)).train(2)
        await server.close()
        server.numerics = NumericsFingerprint(numerics_revision=1, numpy_version="2.5")
        server.open()
        if numerics == job_pb2.NUMERICS_ANY:
            assert not server.jobs.get(job_id).reproducible
            assert (await server.running(job_id)).step == 2
        else:
            job = await server.state(job_id, FAILED)
            assert job.error_type == service_pb2.ERROR_TYPE_NUMERICS
            assert "numpy_version" in job.message
        await server.close()

    asyncio.run(life())


# A given model


def test_initial_parameters_come_from_the_given_model(tmp_path: Path) -> None:
    upload_id = "0" * 64 + ".safetensors"

    async def scene(server: Bench) -> None:
        given = np.arange(NUM_PARAMETERS, dtype=np.float32)
        checkpoints.write_model(tmp_path / "uploads" / upload_id, make_spec(), given)
        spec = make_spec()
        spec.start_from.model = upload_id
        server.fleet(1)
        run = await server.load((await server.jobs.submit("", spec)).id)
        assert run.start.parameters.tolist() == given.tolist()
        assert "starts from a saved model: parameters alone" in await server.events(run.job_id)

    play(tmp_path, scene)


def test_a_given_model_of_another_shape_fails_the_job(tmp_path: Path) -> None:
    upload_id = "0" * 64 + ".safetensors"

    async def scene(server: Bench) -> None:
        other = make_spec()
        other.network.inputs = 5
        checkpoints.write_model(tmp_path / "uploads" / upload_id, other, np.zeros(12, np.float32))
        spec = make_spec()
        spec.start_from.model = upload_id
        server.fleet(1)
        job_id = (await server.jobs.submit("", spec)).id
        server.scheduler.data_loaded(training_pb2.DataLoaded(job_id=job_id, num_rows=10))
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_DATA_INVALID
        assert "start_from.model cannot be used" in job.message

    play(tmp_path, scene)


# Rewinds


AGAIN = Outcome(RUNNING, message="step 5, node [0, 2), layer 3: copies differ")


async def next_run(server: Bench, run: FakeRun) -> FakeRun:
    while server.runs[run.job_id] is run:
        await turn()
    return server.runs[run.job_id]


def test_a_run_that_rewinds_is_taken_up_at_once_from_its_newest_checkpoint(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        run = await server.load(await server.submit())
        run.join("w1")
        run.train(3)
        await run.keep()
        run.train(2)
        run.expelled.add("w1")
        run.end(AGAIN)
        assert server.scheduler.run(run.job_id) is None  # workers that dial again do not find it
        assert server.orders() == {run.job_id: 1}
        again = await next_run(server, run)
        assert run.closed
        assert (again.step, again.arguments["attempt"]) == (3, 2)
        assert again.arguments["expelled"] == {"w1"}
        events = await server.events(run.job_id)
        assert events[-2:] == [
            "rewinds: step 5, node [0, 2), layer 3: copies differ",
            "taken up at version 3 (attempt 2), which had reached 5",
        ]
        assert server.jobs.get(run.job_id).state == RUNNING

    play(tmp_path, scene)


def test_rewinds_that_lead_nowhere_end_the_job(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        run = await server.load(await server.submit())
        run.train(5)
        for _ in range(5):
            run.end(AGAIN)
            run = await next_run(server, run)
            run.train(5)
        run.train(1)  # beyond the furthest: it may rewind as often again
        for _ in range(5):
            run.end(AGAIN)
            run = await next_run(server, run)
            run.train(6)
        run.end(AGAIN)
        job = await server.state(run.job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_CORRUPTION
        assert job.message == f"{AGAIN.message}; the job has rewound 5 times without getting beyond step 6"

    play(tmp_path, scene)


@pytest.mark.parametrize(("verb", "state"), [("pause", PAUSED), ("stop", STOPPED)])
def test_what_was_asked_of_a_run_that_rewinds_is_not_lost(tmp_path: Path, verb: str, state: State.ValueType) -> None:
    async def scene(server: Bench) -> None:
        server.jobs._patience_s = 0.0
        server.fleet(1)
        run = await server.load(await server.submit())
        run.join("w1")
        run.train(2)
        await run.keep()
        await getattr(server.jobs, verb)(run.job_id)
        run.end(AGAIN)
        assert (await server.state(run.job_id, state)).step == 2

    play(tmp_path, scene)


# Ends that a crash interrupts


@pytest.mark.parametrize("models", [False, True])
def test_a_server_killed_while_it_saves_the_end_ends_the_job_from_its_last_version(
    tmp_path: Path, models: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.open()
        server.fleet(1)
        job_id = await server.submit(epochs=4)
        run = await server.load(job_id)
        run.train(2)
        await run.keep()
        run.train(2)
        files = server.files(job_id)
        files.write_checkpoint(server.directory.find(job_id).origin, run.snapshot(), digest_of_version(4))
        if models:
            files.write_models(run.spec, run.snapshot())
        await server.journal.close()  # killed, with the last version on disk and the job RUNNING
        server.open()
        job = await server.state(job_id, SUCCEEDED)
        assert (job.step, job.digest) == (4, digest_of_version(4))
        assert (job.stop_reason, job.message) == (service_pb2.STOP_REASON_EPOCHS, "all 4 epochs are done")
        assert server.runs[job_id] is run  # there was nothing left to train
        assert server.jobs.model(job_id, Which.WHICH_MODEL_LAST).exists()
        await server.close()

    asyncio.run(life())


def test_an_orderly_end_does_no_step_that_would_have_to_be_done_again(tmp_path: Path) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.open()
        server.fleet(1)
        run = await server.load(await server.submit())
        run.join("w1")
        run.train(5)
        await server.close()
        assert run.ended == [Outcome(RUNNING)]  # no step follows the checkpoint, and workers dial again
        assert [kept.version for kept in server.files(run.job_id).checkpoints()] == [5]
        assert server.jobs.get(run.job_id).state == RUNNING

    asyncio.run(life())


def test_a_defect_at_the_very_end_does_not_leave_the_job_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("oops")

    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        monkeypatch.setattr(server.directory.find(job_id), "refresh", broken)
        run.end(SUCCEEDED)
        while not server.directory.find(job_id).ended:
            await turn()
        assert server.directory.find(job_id).job.message == "a defect in Lockstep: ZeroDivisionError('oops')"

    play(tmp_path, scene)
    assert "a defect ended the job" in caplog.text


def test_a_defect_in_keeping_a_version_is_warned_of_and_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("oops")

    async def scene(server: Bench) -> None:
        server.fleet(1)
        run = await server.load(await server.submit())
        run.train(1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write", broken)
            await run.keep()
        assert "ZeroDivisionError('oops'); the job goes on" in (await server.events(run.job_id))[-1]
        run.train(1)
        await run.keep()
        assert [kept.version for kept in server.files(run.job_id).checkpoints()] == [2]

    play(tmp_path, scene)
