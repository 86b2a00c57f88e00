"""Which state may follow which."""

import itertools

import pytest

from lockstep_server.errors import IllegalTransitionError
from lockstep_server.lifecycle import ENDED, State, check_move, name

LEGAL = {
    ("pending", "running"),
    ("pending", "failed"),
    ("pending", "stopped"),
    ("running", "paused"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "stopped"),
    ("paused", "pending"),
    ("paused", "failed"),
    ("paused", "stopped"),
}
STATES = [state for state in State.values() if state]


@pytest.mark.parametrize(("now", "to"), list(itertools.product(STATES, STATES)))
def test_every_pair_of_states_is_legal_or_refused(now: State.ValueType, to: State.ValueType) -> None:
    if (name(now), name(to)) in LEGAL:
        check_move("3f2a00000000", [now], to)
    else:
        with pytest.raises(IllegalTransitionError):
            check_move("3f2a00000000", [now], to)


def test_an_illegal_move_tells_the_story() -> None:
    story = [State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING, State.JOB_STATE_SUCCEEDED]
    with pytest.raises(IllegalTransitionError) as caught:
        check_move("3f2a00000000", story, State.JOB_STATE_PAUSED)
    assert "3f2a00000000" in str(caught.value)
    assert "pending -> running -> succeeded" in str(caught.value)


def test_nothing_follows_an_end() -> None:
    assert {name(state) for state in ENDED} == {"succeeded", "failed", "stopped"}
