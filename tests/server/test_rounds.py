"""Rounds: how the seconds of a step are told apart."""

import pytest

from lockstep_proto.codec import NodeChunk, Sums
from lockstep_server.rounds import STEP, Round, check_size


def seconds(compute_s, step_s):
    current = Round(STEP, 0, None, 0.0)
    for i, worker_s in enumerate(compute_s):
        current.computed(f"w{i}", worker_s)
    return current.seconds(step_s)


def test_a_step_is_what_its_workers_computed_on_average_what_they_waited_and_the_rest():
    assert seconds([0.5, 0.25], 1.0) == (0.375, 0.125, 0.5)
    assert seconds([], 1.0) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("num_workers", [3, 32])
def test_workers_that_computed_for_the_very_same_time_waited_for_none(num_workers):
    """A counter of seconds refuses what is below 0, and the mean of equal numbers can be above them by rounding."""
    assert sum([0.1] * num_workers) / num_workers > 0.1
    assert seconds([0.1] * num_workers, 1.0) == (0.1, 0.0, 0.9)


@pytest.mark.parametrize(
    ("index", "size", "words"), [(0, 3, "chunk 0 has 3 elements, not 4"), (2, 4, "there is no chunk 2: there are 2")]
)
def test_a_chunk_that_cannot_be_is_refused_by_name(index, size, words):
    chunk = NodeChunk(1, 0, (0, 1), index, Sums(1.0, 0.0, 0.0), 0.0, b"")
    with pytest.raises(ValueError, match=words):
        check_size(chunk, size, [4, 2])


def test_a_chunk_of_the_right_size_is_taken():
    check_size(NodeChunk(1, 0, (0, 1), 1, Sums(1.0, 0.0, 0.0), 0.0, b""), 2, [4, 2])
