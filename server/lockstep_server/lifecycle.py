"""The life of a job: which state may follow which."""

import enum
from collections.abc import Sequence

from lockstep_proto.v1 import service_pb2
from lockstep_server.errors import IllegalTransitionError

State = service_pb2.JobState

ENDED = frozenset({State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_STOPPED})

# A paused job goes back to RUNNING by way of the queue, where it waits, at its old place, if there is no room.
NEXT: dict[State.ValueType, frozenset[State.ValueType]] = {
    State.JOB_STATE_PENDING: frozenset(
        {State.JOB_STATE_RUNNING, State.JOB_STATE_FAILED, State.JOB_STATE_STOPPED},
    ),
    State.JOB_STATE_RUNNING: frozenset({State.JOB_STATE_PAUSED, *ENDED}),
    State.JOB_STATE_PAUSED: frozenset(
        {State.JOB_STATE_PENDING, State.JOB_STATE_FAILED, State.JOB_STATE_STOPPED},
    ),
    State.JOB_STATE_SUCCEEDED: frozenset(),
    State.JOB_STATE_FAILED: frozenset(),
    State.JOB_STATE_STOPPED: frozenset(),
}


class Wish(enum.StrEnum):
    """What a person asked of a job that it has yet to come to. It is stored before the person is answered."""

    NONE = ""
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"


def name(state: State.ValueType) -> str:
    """The state as people write it: "running"."""
    return State.Name(state).removeprefix("JOB_STATE_").lower()


def check_move(job_id: str, story: Sequence[State.ValueType], to: State.ValueType) -> None:
    """Raise IllegalTransitionError unless `to` may follow the last state of `story`."""
    if to not in NEXT[story[-1]]:
        told = " -> ".join(name(state) for state in story)
        raise IllegalTransitionError(f"job {job_id} is {name(story[-1])} and cannot become {name(to)} (it went {told})")
