"""The promise with real processes: gRPC, Ray actors, shards as Ray objects."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import lockstep
from lockstep_worker.exchange import Worker
from tests import plain_loop
from tests.plain_loop import Digests, Settings
from tests.test_same_bits import spec_of

pytestmark = pytest.mark.cluster

RNG = np.random.default_rng(8)
X = RNG.normal(size=(901, 20)).astype(np.float32)
Y = RNG.integers(0, 5, 901)
VALIDATION = (X[:50], Y[:50])
SETTINGS = Settings(sizes=(20, 700, 600, 5), batch=128, epochs=4, momentum=0.9, dropout=0.1, l2=1e-4, clip_norm=1.0)
ENDLESS = 1_000_000  # epochs of jobs that last until they are stopped, however busy the machine is
CLUSTERS = [(1, 1), (2, 1), (4, 1), (1, 2)]


@pytest.fixture(scope="module")
def expected():
    return plain_loop.train(SETTINGS, X, Y, validation=VALIDATION)


def submit(client, settings=SETTINGS, **changes):
    spec = spec_of(settings)
    for name, value in changes.items():
        getattr(spec.workers, name)
        setattr(spec.workers, name, value)
    return client.submit(spec, data=(X, Y), validation=VALIDATION)


@pytest.mark.parametrize(("workers", "cpus"), CLUSTERS)
def test_any_cluster_gives_the_bits_of_the_plain_loop(expected, workers, cpus):
    with lockstep.LocalCluster(workers, cpus_per_worker=cpus) as client:
        job = submit(client, min=workers, max=workers).wait(timeout_s=120)
        assert job.digest == expected.digest(SETTINGS)
        assert job.history.epochs["validation_loss"] == expected.validation
        assert job.model().digest == job.digest
        assert job.reproducible


def reach(job, step, workers=1):
    """Watch until the job has done so many steps and has so many workers."""
    for update in job._client.watch(job.id, timeout_s=120):
        if (update.job.step >= step and update.job.num_workers >= workers) or update.job.state.ended:
            return update.job
    raise AssertionError("the watch ended early")


def test_workers_join_and_leave_in_the_middle_of_a_job():
    """A second job takes a worker from the first, and gives it back."""
    short = Settings(sizes=(20, 300, 5), batch=128, epochs=5, momentum=0.9)
    endless = replace(short, epochs=ENDLESS)
    expected = Digests(endless, X, Y)
    with lockstep.LocalCluster(2) as client:
        first = submit(client, endless, min=1, max=2)
        reach(first, 20, workers=2)
        second = submit(client, short, min=1, max=2)
        second.wait(timeout_s=120)
        assert second.digest == expected[second.step]
        given_back_at = first.refresh().step
        reach(first, given_back_at + 1, workers=2)
        assert first.stop().step > given_back_at
        assert any("has left" in event.message for event in first.events)
        assert first.wait(timeout_s=120).digest == expected[first.step]


def test_pause_and_resume_leave_no_trace():
    endless = replace(SETTINGS, epochs=ENDLESS)
    with lockstep.LocalCluster(2) as client:
        job = submit(client, endless)
        reach(job, 3)
        assert job.pause().state == "paused"
        step = job.step
        assert step >= 3
        job.resume()
        reach(job, step + 3)
        job.stop()
        assert job.wait(timeout_s=120).digest == Digests(endless, X, Y)[job.step]
        assert job.history.steps["step"] == list(range(job.step))


def test_a_worker_that_was_away_when_its_job_ended_or_was_deleted_ends_when_it_is_back():
    short = replace(SETTINGS, epochs=1)
    with lockstep.LocalCluster(1) as client:
        job = submit(client, short).wait(timeout_s=120)
        late = partial(Worker, "late", job.id, client.address, num_cpus=1, training=None, validation=None)
        assert late().run() == "the job has ended"
        job.delete()
        assert late().run() == "the job has ended"


def test_two_jobs_side_by_side(expected):
    with lockstep.LocalCluster(2) as client:
        jobs = [submit(client, max=1) for _ in range(2)]
        waits = [threading.Thread(target=job.wait, kwargs={"timeout_s": 120}) for job in jobs]
        for wait in waits:
            wait.start()
        for wait in waits:
            wait.join()
        assert [job.digest for job in jobs] == [expected.digest(SETTINGS)] * 2
