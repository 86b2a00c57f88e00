"""The promise with real processes: gRPC, Ray actors, shards as Ray objects."""

import threading

import numpy as np
import pytest

import lockstep
from tests import plain_loop
from tests.plain_loop import Settings
from tests.test_same_bits import spec_of

pytestmark = pytest.mark.cluster

RNG = np.random.default_rng(8)
X = RNG.normal(size=(901, 20)).astype(np.float32)
Y = RNG.integers(0, 5, 901)
VALIDATION = (X[:50], Y[:50])
SETTINGS = Settings(sizes=(20, 700, 600, 5), batch=128, epochs=4, momentum=0.9, dropout=0.1, l2=1e-4, clip_norm=1.0)
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
    long = Settings(sizes=(20, 300, 5), batch=128, epochs=400, momentum=0.9)
    short = Settings(sizes=(20, 300, 5), batch=128, epochs=5, momentum=0.9)
    with lockstep.LocalCluster(2) as client:
        first = submit(client, long, min=1, max=2)
        reach(first, 20, workers=2)
        second = submit(client, short, min=1, max=2)
        assert second.wait(timeout_s=120).digest == plain_loop.train(short, X, Y).digest(short)
        assert not first.refresh().state.ended, "the first job went on beside it"
        first.wait(timeout_s=120)
        events = [event.message for update in client.watch(first.id) for event in update.events]
        assert any("has left" in message for message in events)
        assert first.digest == plain_loop.train(long, X, Y).digest(long)


def test_pause_and_resume_leave_no_trace(expected):
    with lockstep.LocalCluster(2) as client:
        job = submit(client)
        reach(job, 3)
        assert job.pause().state == "paused"
        step = job.step
        assert 3 <= step < job.num_steps
        job.resume()
        assert job.wait(timeout_s=120).digest == expected.digest(SETTINGS)
        assert len(job.history.steps["step"]) == job.num_steps


def test_two_jobs_side_by_side(expected):
    with lockstep.LocalCluster(2) as client:
        jobs = [submit(client, max=1) for _ in range(2)]
        waits = [threading.Thread(target=job.wait, kwargs={"timeout_s": 120}) for job in jobs]
        for wait in waits:
            wait.start()
        for wait in waits:
            wait.join()
        assert [job.digest for job in jobs] == [expected.digest(SETTINGS)] * 2
