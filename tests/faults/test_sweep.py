"""Every failpoint with real processes: whatever dies, stands still or fails there, a job ends as it would without."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest

from lockstep_proto import failpoints
from tests.faults import task
from tests.faults.cases import CASES, FLEET
from tests.faults.cluster import ENVIRONMENT, Cluster
from tests.faults.judging import problems, told
from tests.faults.ray_fleet import RayCluster, RayFleet
from tests.faults.stories import STORIES

pytestmark = [pytest.mark.faults, pytest.mark.slow]
SIDE_BY_SIDE = 3  # a case waits more than it computes


def play(case, directory, **options):
    """Play a case, and fail if there is something to say against its end."""
    with Cluster(directory, rules=case.rule, recovering=case.story == "recovery", **options) as cluster:
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
        yield from problems(job)
    elif job.state != "failed" or not job.message.startswith(case.failed):
        yield f"it must fail with {case.failed!r}, but: {job.state} {job.message}"


@pytest.fixture(scope="module")
def sweep(request, tmp_path_factory):
    """The selected cases, under way side by side, in their order."""
    task.expected()
    selected = [item.callspec.params["case"] for item in request.session.items if "sweep" in item.fixturenames]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {case: pool.submit(play, case, tmp_path_factory.mktemp("case")) for case in selected}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_job_ends_as_it_would_without_the_fault(case, sweep):
    sweep[case].result()


@pytest.fixture(scope="module")
def ray_cluster():
    cluster = RayCluster(ENVIRONMENT)
    yield cluster
    cluster.close()


@pytest.mark.cluster
@pytest.mark.parametrize("case", FLEET, ids=str)
def test_a_job_ends_as_it_would_without_the_fault_of_a_fleet(case, ray_cluster, tmp_path):
    in_ray = case.point == "fleet.task"  # whose processes have the environment of the Ray cluster
    make_fleet = functools.partial(RayFleet, ray_address="local" if in_ray else ray_cluster.address)
    play(case, tmp_path / "case", make_fleet=make_fleet)


def test_every_point_is_in_the_sweep():
    assert set(failpoints.POINTS) == {case.point for case in [*CASES, *FLEET]}
