"""What the server keeps of a job beside its numbers: events, checkpoints, the ledger of its parameters' digests."""

from dataclasses import dataclass
from datetime import UTC, datetime

from lockstep_proto.v1 import numerics_pb2, service_pb2


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    sequence: int
    time: datetime
    severity: str
    message: str

    @classmethod
    def from_message(cls, message: service_pb2.Event) -> "Event":
        """Return the event of a message."""
        severity = service_pb2.Severity.Name(message.severity).removeprefix("SEVERITY_").lower()
        return cls(message.sequence, message.time.ToDatetime(tzinfo=UTC), severity, message.message)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is kept: a job can start from it (`start_from = {job = ID, version = VERSION}`).

    `validation_loss` is that of the last evaluation at or before the version; None before the first.
    """

    version: int
    epoch: int
    step_in_epoch: int
    size_bytes: int
    time: datetime
    validation_loss: float | None

    @classmethod
    def from_message(cls, message: service_pb2.CheckpointInfo) -> "Checkpoint":
        """Return the checkpoint of a message."""
        return cls(
            version=message.version,
            epoch=message.epoch,
            step_in_epoch=message.step_in_epoch,
            size_bytes=message.size_bytes,
            time=message.time.ToDatetime(tzinfo=UTC),
            validation_loss=message.validation_loss if message.HasField("validation_loss") else None,
        )


@dataclass(frozen=True)
class LedgerEntry:
    """The digest of one version's parameters, SHA-256 in hexadecimal, and the numerics they were computed with."""

    version: int
    digest: str
    ends_epoch: bool
    attempt: int
    numerics: numerics_pb2.NumericsFingerprint
    server_numerics: numerics_pb2.NumericsFingerprint

    @classmethod
    def from_message(cls, message: service_pb2.LedgerEntry) -> "LedgerEntry":
        """Return the entry of a message."""
        return cls(
            message.version,
            message.digest,
            message.ends_epoch,
            message.attempt,
            message.numerics,
            message.server_numerics,
        )
