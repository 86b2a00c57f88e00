"""Who runs, with how many workers, and for how long a job waits for them."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_server import checkpoints
from lockstep_server.errors import (
    NoModelError,
)
from lockstep_server.job_files import Which
from lockstep_server.lifecycle import State
from tests.server.fakes import Bench, digest_of_version, play, turn

PENDING, RUNNING, PAUSED = State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING, State.JOB_STATE_PAUSED
SUCCEEDED, FAILED, STOPPED = State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_STOPPED


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


def test_a_job_that_is_being_saved_needs_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    write = checkpoints.write_model

    def wait(*arguments: Any) -> None:
        may_write.wait()
        write(*arguments)

    monkeypatch.setattr(checkpoints, "write_model", wait)

    async def scene(server: Bench) -> None:
        server.fleet(1)
        first = await server.submit()
        (await server.load(first)).end(State.JOB_STATE_SUCCEEDED)
        second = await server.submit()
        orders = server.orders()
        may_write.set()
        assert orders == {second: 1}
        await server.state(first, State.JOB_STATE_SUCCEEDED)

    play(tmp_path, scene)


def test_a_job_that_waits_too_long_for_a_fleet_fails_with_the_cause(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        job_id = await server.submit(workers__wait_s=60.0)
        server.watchdog.look(server.now)
        server.now += 59.9
        server.watchdog.look(server.now)
        assert server.jobs.get(job_id).state == PENDING
        server.now += 0.1
        server.watchdog.look(server.now)
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
        server.watchdog.look(server.now)
        server.now += 60
        server.watchdog.look(server.now)
        job = await server.state(large, FAILED)
        assert "the cluster has room for 1, the job needs 2 (workers.min)" in job.message
        assert server.jobs.get(small).state == RUNNING

    play(tmp_path, scene)


def test_a_job_behind_a_running_one_may_wait_for_ever(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        await server.submit()
        second = await server.submit(workers__wait_s=60.0)
        server.watchdog.look(server.now)
        server.now += 1000
        server.watchdog.look(server.now)
        await turn()
        assert server.jobs.get(second).state == PENDING

    play(tmp_path, scene)


def test_a_running_job_whose_fleet_stays_away_before_its_data_are_loaded_fails(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit(workers__wait_s=60.0)
        server.watchdog.look(server.now)
        server.now += 59  # loading takes its time
        server.watchdog.look(server.now)
        assert server.attachment is not None
        server.scheduler.detached(server.attachment)
        assert server.jobs.get(job_id).phase == "waiting for a fleet"
        server.watchdog.look(server.now)
        server.now += 60
        server.watchdog.look(server.now)
        assert (await server.state(job_id, FAILED)).error_type == service_pb2.ERROR_TYPE_NO_WORKERS

    play(tmp_path, scene)


def test_data_that_nothing_is_heard_of_end_the_job_and_a_new_fleet_begins_anew(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit(workers__wait_s=60.0)
        server.watchdog.look(server.now)
        server.now += 59
        server.watchdog.look(server.now)
        server.attachment = None
        server.fleet(1)  # another one, which loads from the start
        server.watchdog.look(server.now)
        server.now += 59
        server.watchdog.look(server.now)
        assert server.jobs.get(job_id).state == RUNNING
        server.now += 1
        server.watchdog.look(server.now)
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_DATA_UNAVAILABLE
        assert job.message.startswith("no data within 60 s (workers.wait_s)")

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
        await server.submit()
        await turn()
        assert not next_orders.done()  # else it would end workers that it still has
        server.scheduler.resources(training_pb2.FleetResources(worker_slots=1))
        assert [(order.job_id, order.num_workers) for order in (await next_orders).jobs] == [(job_id, 1)]
        assert older.replaced
        server.scheduler.detached(older)  # late, and of no consequence
        assert server.scheduler.fleet.worker_slots == 1

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
        words = "100 rows and 0 for validation before, 101 and 0 now"
        assert job.message == f"the data changed while the job was under way: {words}; submit it again"
        assert job.digest == digest_of_version(2)  # what it had is kept

    play(tmp_path, scene)


def test_a_job_knows_the_fingerprints_of_its_data(tmp_path: Path) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        server.scheduler.data_loaded(loaded(job_id))
        await server.running(job_id)
        job = server.jobs.get(job_id)
        assert (job.data_fingerprint, job.validation_fingerprint) == ("abc" * 20, "def" * 20)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("data_fingerprint", "the training data have other values in as many rows (fingerprint abcabcabcabc, now xyz)"),
        (
            "validation_fingerprint",
            "the validation data have other values in as many rows (fingerprint defdefdefdef, now xyz)",
        ),
    ],
)
def test_a_file_changed_in_place_ends_a_job_when_it_is_taken_up_again(tmp_path: Path, field: str, words: str) -> None:
    async def scene(server: Bench) -> None:
        server.fleet(1)
        job_id = await server.submit()
        server.scheduler.data_loaded(loaded(job_id))
        (await server.running(job_id)).train(2)
        await server.jobs.pause(job_id)
        await server.jobs.resume(job_id)
        server.scheduler.data_loaded(loaded(job_id, **{field: "xyz"}))
        job = await server.state(job_id, FAILED)
        assert job.error_type == service_pb2.ERROR_TYPE_DATA_INVALID
        assert job.message == f"the data changed while the job was under way: {words}; submit it again"

    play(tmp_path, scene)


def loaded(job_id: str, **changes: str) -> training_pb2.DataLoaded:
    fields = {"data_fingerprint": "abc" * 20, "validation_fingerprint": "def" * 20} | changes
    return training_pb2.DataLoaded(job_id=job_id, num_rows=100, num_validation_rows=10, **fields)


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
