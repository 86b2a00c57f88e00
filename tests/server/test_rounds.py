"""Rounds: how the seconds of a step are told apart."""

import pytest

from lockstep_server.rounds import STEP, Round


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
