"""What a training tells of itself: numbers of steps and epochs, how it ended, and who wants to know."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from lockstep_proto.v1 import service_pb2
from lockstep_server.checkpoints import Checkpoint

Array = npt.NDArray[Any]


class StepRecord(NamedTuple):
    """One step. Loss and gradient norm are those of the version it started from, with penalties, before clipping.

    The seconds of a step are what its workers computed (their mean), what the faster ones waited for the slowest,
    and the rest: transfer and update.
    """

    step: int
    epoch: int
    loss: float
    gradient_norm: float
    learning_rate: float
    num_rows: int
    weight: float
    step_s: float
    compute_s: float
    wait_s: float
    transfer_s: float


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch. What was not measured is NaN."""

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version at which an epoch ended or a checkpoint is due, or both. `checkpoint` is there only when one is due."""

    version: int
    ends_epoch: bool
    parameters: Array  # flat
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended.

    PAUSED is for one that is taken up again when a person wants it; RUNNING for one that rewinds: it is taken up again
    at once, from its newest checkpoint.
    """

    state: service_pb2.JobState.ValueType
    stop_reason: service_pb2.StopReason.ValueType = service_pb2.STOP_REASON_UNSPECIFIED
    error_type: service_pb2.ErrorType.ValueType = service_pb2.ERROR_TYPE_UNSPECIFIED
    message: str = ""


class RunListener(Protocol):
    """Who wants to know what happens to a run. All calls come on its event loop and must be quick."""

    def event(self, severity: service_pb2.Severity.ValueType, message: str) -> None:
        """Take an event for people."""

    def step(self, record: StepRecord) -> None:
        """Take a step; called at every one."""

    def epoch(self, record: EpochRecord) -> None:
        """Take an epoch."""

    def version(self, kept: KeptVersion) -> None:
        """Take a version that is to be kept, and tell `JobRun.checkpoint_written` when its checkpoint is done with."""

    def gave_up(self, worker_id: str) -> None:
        """Take note that a worker was given up for good; its process is to be ended if it is still there."""

    def changed(self) -> None:
        """Take note that phase or workers have changed."""

    def ended(self, outcome: Outcome) -> None:
        """Take the end; the last call."""
