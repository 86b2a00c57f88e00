"""The controller: jobs through their lives, on fake runs and a clock that stands still."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep_proto.layout import Layout, digest
from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server import checkpoints
from lockstep_server.errors import (
    DiskFullError,
    IllegalTransitionError,
    InvalidRequestError,
    InvalidSpecError,
    JobNotFoundError,
    NoModelError,
    ShuttingDownError,
)
from lockstep_server.job_files import Which
from lockstep_server.lifecycle import State
from tests.server.fakes import FINGERPRINT, NUM_PARAMETERS, Bench, bench, make_spec, turn

PENDING, RUNNING, PAUSED = State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING, State.JOB_STATE_PAUSED
SUCCEEDED, FAILED, STOPPED = State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_STOPPED


def digest_of_version(version: int) -> str:
    return digest(Layout.from_spec(make_spec()), np.full(NUM_PARAMETERS, version, np.float32))


def play(state: Path, scene: Callable[[Bench], Awaitable[None]], **settings: Any) -> None:
    """Run one server's life."""

    async def life() -> None:
        async with bench(state, **settings) as server:
            await scene(server)

    asyncio.run(life())


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
        history = await server.jobs.history(job_id)
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
        spec.initial_parameters.model = "../secret"
        with pytest.raises(InvalidSpecError) as caught:
            await server.jobs.submit("", spec)
        said = {violation.path: violation.message for violation in caught.value.violations}
        assert "the server has no upload 0000" in said["data.upload"]
        assert "is not a SHA-256" in said["initial_parameters.model"]

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
        server.jobs._make_id = lambda: next(ids)
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


# The queue


def test_the_next_job_gets_the_workers_above_the_minimum(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(4)
        first = await server.submit()
        assert server.orders() == {first: 4}
        second = await server.submit(workers__min=2)
        assert server.orders() == {first: 2, second: 2}
        third = await server.submit(workers__min=2)
        assert server.jobs.get(third).phase == "waiting for workers: 1 of 2 (the cluster has room for 4)"
        fourth = await server.submit()
        assert server.jobs.get(fourth).phase == "queued behind 1 job"
        await server.jobs.stop(second)
        assert server.orders() == {first: 1, third: 2, fourth: 1}

    play(tmp_path, scene)


def test_a_job_that_waits_too_long_for_a_fleet_fails_with_the_cause(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        job_id = await server.submit(workers__wait_s=60.0)
        server.scheduler.check_deadlines()
        server.now += 59.9
        server.scheduler.check_deadlines()
        assert server.jobs.get(job_id).state == PENDING
        server.now += 0.1
        server.scheduler.check_deadlines()
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_NO_WORKERS
        assert (
            job.message
            == "no workers within 60 s (workers.wait_s): no fleet is attached; start one with lockstep-fleet"
        )

    play(tmp_path, scene)


def test_a_job_larger_than_the_cluster_fails_after_its_limit_and_the_next_goes_on(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        large = await server.submit(workers__min=2, workers__wait_s=60.0)
        small = await server.submit()
        server.scheduler.check_deadlines()
        server.now += 60
        server.scheduler.check_deadlines()
        job = await server.state(large, FAILED)
        assert "the cluster has room for 1, the job needs 2 (workers.min)" in job.message
        assert server.jobs.get(small).state == RUNNING

    play(tmp_path, scene)


def test_a_job_behind_a_running_one_may_wait_for_ever(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        await server.submit()
        second = await server.submit(workers__wait_s=60.0)
        server.scheduler.check_deadlines()
        server.now += 1000
        server.scheduler.check_deadlines()
        await turn()
        assert server.jobs.get(second).state == PENDING

    play(tmp_path, scene)


def test_a_running_job_whose_fleet_stays_away_before_its_data_are_loaded_fails(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit(workers__wait_s=60.0)
        server.scheduler.check_deadlines()
        server.now += 1000  # loading takes its time
        server.scheduler.check_deadlines()
        assert server.attachment is not None
        server.scheduler.detached(server.attachment)
        assert server.jobs.get(job_id).phase == "waiting for a fleet"
        server.scheduler.check_deadlines()
        server.now += 60
        server.scheduler.check_deadlines()
        assert (await server.state(job_id, FAILED)).error_type == service_pb2.ERROR_TYPE_NO_WORKERS

    play(tmp_path, scene)


# The fleet


def test_a_fleet_gets_its_orders_once_it_has_told_its_resources(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        older = server.attachment
        assert older is not None
        orders = server.scheduler.fleet.attach().orders()
        next_orders = asyncio.ensure_future(anext(aiter(orders)))
        await turn()
        assert not next_orders.done()  # else it would end workers that it still has
        server.scheduler.resources(training_pb2.FleetResources(worker_slots=3))
        assert [(order.job_id, order.num_workers) for order in (await next_orders).jobs] == [(job_id, 3)]
        assert older.replaced
        server.scheduler.detached(older)  # late, and of no consequence
        assert server.scheduler.fleet.worker_slots == 3

    play(tmp_path, scene)


def test_orders_carry_the_completed_spec(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        (order,) = server.scheduler.fleet._orders.jobs
        assert order.spec == server.jobs.get(job_id).spec
        assert order.spec.workers.wait_s == 3600

    play(tmp_path, scene)


def test_data_that_cannot_be_had_fail_the_job_in_the_fleets_words(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        failed = training_pb2.DataFailed(
            job_id=job_id,
            error_type=service_pb2.ERROR_TYPE_DATA_UNAVAILABLE,
            message="rows.csv: there is no such file below the data root",
        )
        server.scheduler.data_failed(failed)
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_DATA_UNAVAILABLE
        assert job.message == failed.message
        with pytest.raises(NoModelError):
            server.jobs.model(job_id, Which.WHICH_MODEL_LAST)

    play(tmp_path, scene)


def test_data_loaded_again_are_expected_to_be_the_same(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id, num_rows=100)
        run.train(2)
        assert await server.load(job_id, num_rows=100) is run
        server.scheduler.data_loaded(training_pb2.DataLoaded(job_id=job_id, num_rows=101))
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_DATA_INVALID
        assert "the data changed while the job was under way: 100 rows" in job.message
        assert job.digest == digest_of_version(2)  # what it had is kept

    play(tmp_path, scene)


def test_a_workers_end_is_a_warning_unless_the_run_has_warned_of_it(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        run.join("w1")
        run.workers.clear()
        for worker_id in ("w1", "w2"):
            exited = training_pb2.WorkerExited(job_id=job_id, worker_id=worker_id, message="killed by signal 9")
            server.scheduler.worker_exited(exited)
        first, second = (await server.journal.events(job_id))[-2:]
        assert (first.message, first.severity) == ("worker w1 ended: killed by signal 9", service_pb2.SEVERITY_INFO)
        assert (second.message, second.severity) == (
            "worker w2 ended: killed by signal 9",
            service_pb2.SEVERITY_WARNING,
        )

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
        size = server.jobs.model(first, Which.WHICH_MODEL_LAST).stat().st_size
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
        assert job.digest == ""

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
                await server.scheduler.write_checkpoints()
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
        assert list((await server.jobs.history(job_id)).steps.step) == list(range(6))
        run.end(SUCCEEDED)
        assert (await server.state(job_id, SUCCEEDED)).digest == digest_of_version(6)
        assert "taken up at version 6 (attempt 2)" in await server.events(job_id)

    play(tmp_path, first)
    play(tmp_path, second)


def test_a_job_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    async def life() -> None:
        server = Bench(tmp_path)
        server.open()
        server.fleet(1)
        job_id = await server.submit()
        (await server.load(job_id)).train(6)
        await server.journal.close()  # killed: no checkpoint
        server.open()
        run = await server.running(job_id)
        assert run.start is None
        assert run.arguments["initial"] is None
        assert run.arguments["attempt"] == 2
        await server.close()

    asyncio.run(life())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    job_ids: list[str] = []

    async def first(server: Bench) -> None:
        server.fleet(1)
        job_ids.append(await server.submit())
        run = await server.load(job_ids[0])
        for _ in range(3):
            run.train(1)
            await server.scheduler.write_checkpoints()

    async def second(server: Bench) -> None:
        run = await server.running(job_ids[0])
        assert run.step == 2
        (warning,) = [event for event in await server.events(job_ids[0]) if "000000000003.safetensors" in event]
        assert "going back to the one before it" in warning

    play(tmp_path, first)
    files = sorted((tmp_path / "jobs" / job_ids[0] / "checkpoints").iterdir())
    assert [file.name for file in files] == ["000000000002.safetensors", "000000000003.safetensors"]  # two are kept
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    play(tmp_path, second)


def test_checkpoints_are_written_by_the_clock_and_only_of_new_versions(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        run = await server.load(job_id)
        directory = tmp_path / "jobs" / job_id / "checkpoints"
        run.train(1)
        server.now += 29
        await server.housekeeping.tick()
        await turn()
        assert not directory.exists()
        server.now += 1
        await server.housekeeping.tick()
        while not (directory / "000000000001.safetensors").exists():
            await turn()
        written = (directory / "000000000001.safetensors").stat().st_mtime_ns
        await server.scheduler.write_checkpoints()
        assert (directory / "000000000001.safetensors").stat().st_mtime_ns == written
        ((_, told, _, num_bytes),) = [call for call in server.metrics.calls if call[0] == "checkpoint"]
        assert (told, num_bytes) == (job_id, (directory / "000000000001.safetensors").stat().st_size)

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
        spec.initial_parameters.model = upload_id
        server.fleet(1)
        run = await server.load((await server.jobs.submit("", spec)).id)
        assert run.arguments["initial"].tolist() == given.tolist()

    play(tmp_path, scene)


def test_a_given_model_of_another_shape_fails_the_job(tmp_path: Path) -> None:
    upload_id = "0" * 64 + ".safetensors"

    async def scene(server: Bench) -> None:
        other = make_spec()
        other.network.inputs = 5
        checkpoints.write_model(tmp_path / "uploads" / upload_id, other, np.zeros(12, np.float32))
        spec = make_spec()
        spec.initial_parameters.model = upload_id
        server.fleet(1)
        job_id = (await server.jobs.submit("", spec)).id
        server.scheduler.data_loaded(training_pb2.DataLoaded(job_id=job_id, num_rows=10))
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_DATA_INVALID
        assert "initial_parameters.model cannot be used" in job.message

    play(tmp_path, scene)
