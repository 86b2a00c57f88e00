"""Servers and workers that are killed, stopped and asked to end while a job runs, as people and systems do it."""

import random
import re
import signal
import threading
import time

import pytest

from tests.client.processes import until
from tests.faults import task
from tests.faults.cluster import PATIENT_LEASE_S, Cluster
from tests.faults.judging import assert_undisturbed, told
from tests.faults.stories import WAIT_S, reach, submit, until_ended

pytestmark = [pytest.mark.faults, pytest.mark.slow]
NUM_KILLS = 10
LONG = {"epochs": 80}  # some seconds of training
QUIET_S = 10.0


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path / "cluster", lease_s=PATIENT_LEASE_S) as made:
        yield made


class Watcher:
    """Watches a job in a thread, as a person would, across whatever happens to the server."""

    def __init__(self, job):
        self.steps, self.events, self.notices = [], [], []
        self._job = job
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self):
        for update in self._job._client._watch(self._job.id, timeout_s=WAIT_S, known=self._job):
            self.steps.append(update.job.step)
            self.events += [event.sequence for event in update.events]
            self.notices += [update.notice] if update.notice else []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._thread.join()


def taken_up_at(job):
    """The versions at which the server has taken a job up."""
    return [int(version) for version in re.findall(r"taken up at version (\d+)", told(job))]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_server_killed_again_and_again_at_any_moment_changes_nothing(cluster, seed):
    moments = random.Random(seed)
    task.expected(**LONG)
    job = submit(cluster, **LONG)
    with Watcher(job) as watcher:
        for _ in range(NUM_KILLS):
            time.sleep(moments.uniform(0.0, 0.8))  # any moment: of a start, of taking up, of a step, of a checkpoint
            cluster.server.kill()
        until_ended(job)
    assert_undisturbed(job, **LONG)
    assert len([code for code in cluster.server.exits if code == -signal.SIGKILL]) == NUM_KILLS
    assert job.attempt > 3, "or the kills have hit nothing"
    assert watcher.events == sorted(set(watcher.events)), "the watch has told every event once"
    assert watcher.notices


def test_workers_killed_again_and_again_change_nothing(cluster):
    job = submit(cluster, **LONG)
    reach(job, 10)
    killed = set()
    for step in range(30, 300, 30):
        until(lambda: [p for p in cluster.fleet.living() if p.pid not in killed])
        victim = next(p for p in cluster.fleet.living() if p.pid not in killed)
        killed.add(victim.pid)
        victim.kill()
        reach(job, step)
    until_ended(job)
    assert_undisturbed(job, **LONG)
    assert taken_up_at(job) == [0], "no step is repeated for a worker"


def test_a_server_that_is_asked_to_end_ends_in_order_and_loses_no_step(cluster):
    job = submit(cluster, **LONG)
    for step in (13, 57, 101):
        reach(job, step)
        seen = cluster.ask(job.refresh).step
        times = len(taken_up_at(job))
        code, taken_s = cluster.server.terminate()
        assert code == 0, cluster.log
        assert taken_s < 30.0
        cluster.ask(job.refresh)
        assert job.state == "running"
        until(lambda times=times: len(cluster.ask(lambda: taken_up_at(job))) > times)
        assert taken_up_at(job)[-1] >= seen
    until_ended(job)
    assert_undisturbed(job, **LONG)


def test_pausing_and_resuming_again_and_again_loses_no_step(cluster):
    job = submit(cluster, **LONG)
    for step in range(20, 140, 20):
        reach(job, step)
        assert job.pause().state == "paused"
        assert job.step >= step
        paused_at = job.step
        job.resume()
        reach(job, paused_at + 1)
        assert taken_up_at(job)[-1] == paused_at
    until_ended(job)
    assert_undisturbed(job, **LONG)


def test_a_worker_that_stops_delays_a_step_by_some_leases_and_is_replaced(cluster):
    job = submit(cluster, **LONG)
    reach(job, 20)
    victim = cluster.fleet.living()[0]
    victim.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    step = job.refresh().step
    reach(job, step + 3)
    delay_s = time.monotonic() - begun
    assert victim.wait(30) == -signal.SIGKILL, "the fleet ends the process of a worker that was given up"
    until_ended(job)
    assert_undisturbed(job, **LONG)
    assert delay_s < 5 * PATIENT_LEASE_S, told(job)
    assert len(cluster.fleet.workers) == 3


def test_a_server_that_stood_still_throws_no_worker_out(cluster):
    cluster.server.stopped_s = QUIET_S
    job = submit(cluster, **LONG)
    reach(job, 20)
    begun = time.monotonic()
    cluster.server.process.send_signal(signal.SIGSTOP)
    step = cluster.ask(job.refresh).step  # answered when it goes on
    assert time.monotonic() - begun > QUIET_S / 2
    resumed = time.monotonic()
    reach(job, step + 3)
    assert time.monotonic() - resumed < 5 * PATIENT_LEASE_S, told(job)
    until_ended(job)
    assert_undisturbed(job, **LONG)
    assert len(cluster.fleet.workers) == 2, "no worker was replaced"
    assert "silent" not in told(job)
