"""What a training wants done: the effects of its state machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lockstep_proto import codec
from lockstep_proto.codec import ParameterChunk
from lockstep_proto.v1 import service_pb2
from lockstep_server.records import EpochRecord, KeptVersion, Outcome, StepRecord


class Send(NamedTuple):
    """Send one message to some workers. `version` is the version it belongs to."""

    worker_ids: Sequence[str]
    version: int
    message: bytes | ParameterChunk  # encoded, or to be when it goes out

    @property
    def num_bytes(self) -> int:
        """How long the message is where all of it goes through a stream."""
        message = self.message
        return codec.message_bytes(message) if isinstance(message, ParameterChunk) else len(message)


@dataclass(frozen=True, slots=True)
class Forget:
    """Throw away what is queued for a worker, and have it drop what it has."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Listen:
    """Take in what a worker sends, or leave it where it is for now."""

    worker_id: str
    listens: bool


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Say goodbye to a worker and close its stream."""

    worker_id: str
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """Tell people of an event."""

    severity: service_pb2.Severity.ValueType
    message: str


@dataclass(frozen=True, slots=True)
class StepDone:
    """A version has been closed."""

    record: StepRecord


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch has ended, and has been evaluated where there are validation data."""

    record: EpochRecord


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep this version."""

    kept: KeptVersion


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing follows: say goodbye to all workers; if it rewinds, only close their streams, so that they dial again."""

    outcome: Outcome


INFO, WARNING = service_pb2.SEVERITY_INFO, service_pb2.SEVERITY_WARNING
Effect = Send | Forget | Listen | Dismiss | Notice | StepDone | EpochDone | Keep | Ended
