"""Who gets workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep_server.queue import Claim, allot, claim, pending_phase, waits_for_cluster
from tests.server.fakes import make_spec


def running(job_id: str, minimum: int, maximum: int) -> Claim:
    return Claim(job_id=job_id, running=True, minimum=minimum, maximum=maximum)


def pending(job_id: str, minimum: int, maximum: int) -> Claim:
    return Claim(job_id=job_id, running=False, minimum=minimum, maximum=maximum)


@pytest.mark.parametrize(
    ("claims", "slots", "expected"),
    [
        ([pending("a", 1, 8)], 3, {"a": 3}),  # alone it gets all
        ([pending("a", 1, 2)], 3, {"a": 2}),  # up to its maximum
        ([pending("a", 2, 4)], 1, {}),  # the whole minimum or nothing
        ([running("a", 1, 8), pending("b", 2, 8)], 4, {"a": 2, "b": 2}),  # surplus is given up for the next
        ([running("a", 1, 8), pending("b", 2, 8)], 2, {"a": 2}),  # but not the minimum
        ([pending("a", 3, 3), pending("b", 1, 1)], 2, {}),  # the head blocks those behind it
        ([running("a", 1, 1), pending("b", 3, 3), pending("c", 1, 1)], 3, {"a": 1}),
        ([pending("a", 1, 3), pending("b", 1, 3)], 4, {"a": 3, "b": 1}),  # surplus in order
        ([running("a", 2, 4), running("b", 2, 4)], 3, {"a": 2, "b": 1}),  # the cluster has shrunk
        ([running("a", 2, 4)], 0, {"a": 0}),
        ([pending("a", 1, 2), running("b", 1, 4)], 2, {"a": 1, "b": 1}),  # a resumed job keeps its place
        ([], 5, {}),
    ],
)
def test_allotments(claims: list[Claim], slots: int, expected: dict[str, int]) -> None:
    assert allot(claims, slots) == expected


claims_of_any_kind = st.lists(
    st.tuples(st.booleans(), st.integers(1, 4), st.integers(0, 4)),
    max_size=6,
).map(
    lambda rows: [
        Claim(job_id=str(i), running=runs, minimum=low, maximum=low + more) for i, (runs, low, more) in enumerate(rows)
    ],
)


@given(claims=claims_of_any_kind, slots=st.integers(0, 12))
def test_what_holds_of_every_allotment(claims: list[Claim], slots: int) -> None:
    granted = allot(claims, slots)
    assert sum(granted.values()) <= slots
    for job in claims:
        assert granted.get(job.job_id, 0) <= job.maximum
        if job.running:
            assert job.job_id in granted
        elif job.job_id in granted:
            assert granted[job.job_id] >= job.minimum
    waiting = [job for job in claims if job.job_id not in granted]
    begun = [job for job in claims if not job.running and job.job_id in granted]
    assert not (waiting and begun) or claims.index(begun[-1]) < claims.index(waiting[0])


def test_more_workers_than_shards_are_not_claimed() -> None:
    spec = make_spec(shards=4, workers__min=1, workers__max=8)
    assert claim("a", spec, running=False) == pending("a", 1, 4)


def test_a_pending_job_says_what_it_waits_for() -> None:
    claims = [running("a", 1, 1), pending("b", 2, 2), pending("c", 1, 1), pending("d", 1, 1)]
    assert pending_phase(claims, "b", 2) == "waiting for workers: 1 of 2 (the cluster has room for 2)"
    assert pending_phase(claims, "c", 2) == "queued behind 1 job"
    assert pending_phase(claims, "d", 2) == "queued behind 2 jobs"
    assert pending_phase([pending("a", 1, 1)], "a", None) == "waiting for a fleet"


def test_only_the_head_of_an_idle_cluster_counts_its_wait() -> None:
    assert waits_for_cluster([pending("a", 1, 1), pending("b", 1, 1)]) == "a"
    assert waits_for_cluster([running("a", 1, 1), pending("b", 1, 1)]) is None
    assert waits_for_cluster([]) is None
