"""Workers whose links are cut, in one direction or both, for a while or for good, or are slow: packets are lost."""

import functools
import time

import pytest

from tests.faults.cluster import PATIENT_LEASE_S, Cluster
from tests.faults.fleet import SmallFleet
from tests.faults.judging import assert_undisturbed, told
from tests.faults.links import Links
from tests.faults.stories import reach, submit, until_ended

pytestmark = [pytest.mark.faults, pytest.mark.netns, pytest.mark.slow]
LONG = {"epochs": 40}
LONGER = {"epochs": 120}  # some leases and redials long, on a quiet machine, too
FEW_LEASES_S = 6 * PATIENT_LEASE_S  # of which the first finds out, and one is the slowness of a busy machine


@pytest.fixture
def links():
    made = Links(2)
    yield made
    made.close()


@pytest.fixture
def cluster(links, tmp_path):
    make_fleet = functools.partial(SmallFleet, slots=links.slots)
    with Cluster(tmp_path / "cluster", make_fleet=make_fleet, host=links.host, lease_s=PATIENT_LEASE_S) as made:
        yield made


def await_steps(job, number):
    """Wait until so many more steps are done; return the seconds that took."""
    begun = time.monotonic()
    reach(job, job.refresh().step + number)
    return time.monotonic() - begun


def cut_until_lost(cluster, links, *directions):
    """Cut the first worker off until the server has lost it; return it and its job, then still under way."""
    job = submit(cluster, **LONGER)
    reach(job, 20)
    name = next(iter(cluster.fleet.workers))
    cluster.fleet.out_of_reach.add(0)  # as a machine is that no packets reach
    links[0].cut(*directions)
    assert await_steps(job, 3) < FEW_LEASES_S, told(job)
    begun = time.monotonic()
    while f"worker {name} is lost" not in told(job):
        assert time.monotonic() - begun < FEW_LEASES_S, told(job)
        time.sleep(0.05)
    await_steps(job, 3)
    return name, job


def refused(name):
    return f"worker {name} is refused: it was given up before; another takes its place"


@pytest.mark.parametrize("directions", [("out",), ("in", "out")], ids="-".join)
def test_the_step_completes_on_the_other_worker_and_a_lost_one_that_comes_back_is_refused(cluster, links, directions):
    name, job = cut_until_lost(cluster, links, *directions)
    silent = f"silent for more than {PATIENT_LEASE_S:g} s"
    assert f"worker {name} is lost: {silent}" in told(job)
    links[0].mend()
    assert cluster.fleet.workers[name].wait(30) == 0
    goodbyes = [refused(name), silent] if directions == ("out",) else [refused(name)]  # it may hear that at once
    assert cluster.fleet.said[name][-1] in goodbyes
    until_ended(job)
    assert_undisturbed(job, **LONGER)


def test_a_worker_that_hears_nothing_holds_nobody_up(cluster, links):
    name, job = cut_until_lost(cluster, links, "in")
    links[0].mend()
    until_ended(job)
    assert cluster.fleet.workers[name].wait(30) == 0
    told_off = cluster.fleet.said[name][-1] == refused(
        name
    )  # or it was the first to notice, and came back as a newcomer
    assert told_off or cluster.fleet.said[name] == ["joined", "joined", "the job has ended"]
    assert_undisturbed(job, **LONGER)


def test_a_link_that_is_cut_for_less_than_a_lease_costs_no_worker(cluster, links):
    job = submit(cluster, **LONG)
    reach(job, 20)
    links[0].cut("in", "out")
    time.sleep(PATIENT_LEASE_S / 8)
    links[0].mend()
    until_ended(job)
    assert_undisturbed(job, **LONG)
    assert len(cluster.fleet.workers) == 2, told(job)


def test_a_job_whose_workers_are_all_cut_off_waits_and_goes_on_with_others(cluster, links):
    job = submit(cluster, **LONG)
    reach(job, 20)
    for i in (0, 1):
        links[i].cut("in", "out")
    while not job.refresh().phase.startswith("waiting for workers: 0 of 1"):
        assert job.state == "running"
        time.sleep(0.1)
    for i in (0, 1):
        links[i].mend()
    until_ended(job)
    assert_undisturbed(job, **LONG)


def test_a_slow_link_does_not_hold_the_others_up(cluster, links):
    job = submit(cluster, **LONG)
    reach(job, 20)
    links[0].slow(200_000)  # a gradient of 1.3 MB takes it seven seconds
    until_ended(job)
    assert_undisturbed(job, **LONG)
