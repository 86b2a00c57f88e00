"""What happens to the processes of workers, with real ones: the job goes on, its bits stay, and they are replaced."""

import os
import signal

import numpy as np
import pytest

import lockstep
from tests import plain_loop
from tests.client.processes import command, family, living, until_gone
from tests.plain_loop import Settings
from tests.test_same_bits import spec_of

pytestmark = pytest.mark.cluster

RNG = np.random.default_rng(13)
X = RNG.normal(size=(901, 20)).astype(np.float32)
Y = RNG.integers(0, 5, 901)
SETTINGS = Settings(sizes=(20, 300, 5), batch=128, epochs=900, momentum=0.9)
WAIT_S = 200


@pytest.fixture(scope="module")
def expected():
    return plain_loop.train(SETTINGS, X, Y).digest(SETTINGS)


@pytest.fixture(scope="module")
def client():
    before = family(os.getpid())
    with lockstep.LocalCluster(2) as client:
        client.before = before
        yield client


def workers_of(client):
    return {process for process in family(os.getpid()) - client.before if "ray::WorkerProcess" in command(process)}


def watch_until(job, holds):
    """Follow the job until something holds; return the events on the way."""
    events = []
    for update in job._client.watch(job.id, timeout_s=WAIT_S):
        events += [event.message for event in update.events]
        if update.job.state.ended or holds(update.job, events):
            assert not update.job.state.ended, events
            return events
    raise AssertionError("the watch ended early")


@pytest.fixture
def job(client):
    """Has two workers, and some steps behind it."""
    spec = spec_of(SETTINGS)
    spec.workers.min, spec.workers.max = 1, 2
    job = client.submit(spec, data=(X, Y))
    watch_until(job, lambda job, _: job.num_workers == 2 and job.step > 20)
    yield job
    job.delete()


def check_replaced(job, ended):
    """Someone else has taken the place of the worker that ended, and its process is gone."""
    events = watch_until(job, lambda job, events: any("is lost" in event for event in events) and job.num_workers == 2)
    until_gone([ended])
    return events


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_worker_that_hangs_or_dies_is_replaced_and_the_bits_stay(client, job, fault, expected):
    victim = min(workers_of(client))
    os.kill(victim.pid, fault)
    events = check_replaced(job, victim)
    assert sum("taken up" in event for event in events) == 1, "nothing but a worker was lost"
    assert job.wait(timeout_s=WAIT_S).digest == expected
    until_gone(workers_of(client) or [victim])


def test_a_worker_that_wakes_after_its_lease_ends_and_is_replaced(client, job, expected):
    """Its process may be killed before, or end by itself since it is refused: both are an end."""
    victim = min(workers_of(client))
    os.kill(victim.pid, signal.SIGSTOP)
    watch_until(job, lambda _, events: any("is lost" in event for event in events))
    if living([victim]):
        os.kill(victim.pid, signal.SIGCONT)
    until_gone([victim])
    watch_until(job, lambda job, _: job.num_workers == 2)
    assert job.wait(timeout_s=WAIT_S).digest == expected
