"""Every failpoint with real processes: whatever dies, stands still or fails there, a job ends as it would without."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest

from lockstep_proto import failpoints
from tests.faults import task
from tests.faults.cases import CASES, FLEET, TASK
from tests.faults.cluster import ENVIRONMENT, Cluster
from tests.faults.fleet import SmallFleet
from tests.faults.judging import problems, told
from tests.faults.ray_fleet import RayCluster, RayFleet
from tests.faults.stories import STORIES

pytestmark = [pytest.mark.faults, pytest.mark.cluster, pytest.mark.slow]
SIDE_BY_SIDE = 3  # a case waits more than it computes


def play(case, directory, make_fleet):
    """Play a case; say what is wrong with its end."""
    recovering = case.story == "recovery"
    with Cluster(directory, rules=case.rule, recovering=recovering, make_fleet=make_fleet) as cluster:
        try:
            job = STORIES[case.story](cluster)
            wrong = [*judge(case, job, cluster)]
        except BaseException as error:
            raise AssertionError(f"{case}: {error!r}\n{cluster.log}") from error
        assert not wrong, f"{case}: {'; '.join(wrong)}\n{job}\n{told(job)}\n{cluster.log}"


def judge(case, job, cluster):
    if not cluster.was_hit(case.point):
        yield "the point was never hit"
    if case.warned and case.warned not in told(job):
        yield f"no event says {case.warned!r}"
    if not case.failed:
        yield from problems(job, epochs=job.num_epochs)
    elif job.state != "failed" or not job.message.startswith(case.failed):
        yield f"it must fail with {case.failed!r}, but: {job.state} {job.message}"


@pytest.fixture(scope="module")
def sweep(request, tmp_path_factory):
    """The selected cases, under way side by side, in their order; those with Ray one after the other."""
    task.expected()
    cases = [item.callspec.params["case"] for item in request.session.items if "sweep" in item.fixturenames]
    plain, with_ray = ThreadPoolExecutor(SIDE_BY_SIDE), ThreadPoolExecutor(1)
    ray = with_ray.submit(RayCluster, ENVIRONMENT) if set(cases) & set(FLEET) else None

    def begin(case):
        directory = tmp_path_factory.mktemp("case")
        if case in TASK:
            return with_ray.submit(play, case, directory, functools.partial(RayFleet, ray_address="local"))
        if case in FLEET:
            return with_ray.submit(lambda: play(case, directory, ray.result().fleet))
        return plain.submit(play, case, directory, SmallFleet)

    yield {case: begin(case) for case in cases}
    for pool in (plain, with_ray):
        pool.shutdown(cancel_futures=True)
    if ray is not None:
        ray.result().close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_job_ends_as_it_would_without_the_fault(case, sweep):
    sweep[case].result()


def test_every_point_is_in_the_sweep():
    assert set(failpoints.POINTS) == {case.point for case in CASES}
