"""Faults of real processes of workers, fleet and Ray: the job goes on or waits, and its bits stay."""

import contextlib
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

import lockstep
from lockstep_worker.ray_errors import DIED
from tests.client.processes import command, family_of, living, until, until_gone
from tests.plain_loop import Digests, Settings
from tests.test_same_bits import spec_of

pytestmark = pytest.mark.cluster

RNG = np.random.default_rng(13)
X = RNG.normal(size=(901, 20)).astype(np.float32)
Y = RNG.integers(0, 5, 901)
SETTINGS = Settings(sizes=(20, 300, 5), batch=128, epochs=1_000_000, momentum=0.9)  # until the job is stopped
WAIT_S = 200


@pytest.fixture(scope="module")
def expected():
    return Digests(SETTINGS, X, Y)


@pytest.fixture(scope="module")
def client():
    with started(2) as client:
        yield client


@contextlib.contextmanager
def started(workers):
    local = lockstep.LocalCluster(workers)
    with local as client:
        client.local = local
        yield client


def workers_of(client):
    return {process for process in family_of(client.local) if "ray::WorkerProcess" in command(process)}


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


def check_bits(job, expected):
    """End the job; it has the bits of the version that it reached."""
    job.stop()
    assert job.wait(timeout_s=WAIT_S).digest == expected[job.step]


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
    assert any(DIED in event for event in events) == (fault == signal.SIGKILL)
    assert sum("taken up" in event for event in events) == 1, "nothing but a worker was lost"
    check_bits(job, expected)


@pytest.mark.parametrize("killed", [False, True])
def test_the_next_job_runs_in_the_processes_of_the_last_one_unless_they_died(client, job, killed, expected):
    before = workers_of(client)
    check_bits(job, expected)
    victims = {min(before)} if killed else set()
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
        until_gone([victim])
    second = client.submit(spec_of(replace(SETTINGS, epochs=100)), data=(X, Y))
    second.wait(timeout_s=WAIT_S)
    assert second.digest == expected[second.step]
    assert workers_of(client) & before == before - victims


def test_a_worker_that_wakes_after_its_lease_ends_and_is_replaced(client, job, expected):
    """Its process may be killed before, or end by itself since it is refused: both are an end."""
    victim = min(workers_of(client))
    os.kill(victim.pid, signal.SIGSTOP)
    watch_until(job, lambda _, events: any("is lost" in event for event in events))
    if living([victim]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGCONT)
    until_gone([victim])
    watch_until(job, lambda job, _: job.num_workers == 2)
    check_bits(job, expected)


def process_of(client, part):
    (found,) = (process for process in family_of(client.local) if part in command(process))
    return found


def test_a_fleet_that_hangs_is_let_go_and_taken_back(client, job, expected):
    fleet = process_of(client, "lockstep_worker.fleet_main")
    os.kill(fleet.pid, signal.SIGSTOP)
    until(lambda: not client.cluster().fleet_attached)
    os.kill(fleet.pid, signal.SIGCONT)
    until(lambda: client.cluster().worker_slots == 2)
    victim = min(workers_of(client))
    os.kill(victim.pid, signal.SIGKILL)
    check_replaced(job, victim)
    check_bits(job, expected)


def test_the_end_of_ray_ends_the_fleet_and_its_workers_and_the_job_waits():
    with started(1) as client:
        job = client.submit(spec_of(SETTINGS), data=(X, Y))
        watch_until(job, lambda job, _: job.step > 0)
        fleet = process_of(client, "lockstep_worker.fleet_main")
        os.kill(process_of(client, "gcs_server").pid, signal.SIGKILL)
        until_gone([fleet, *workers_of(client)])
        until(lambda: not client.cluster().fleet_attached)
        until(lambda: job.refresh().phase == "waiting for workers: 0 of 1", lambda: f"{job!r} {job.phase}")
        processes = family_of(client.local)
    until_gone(processes)
