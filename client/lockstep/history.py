"""The recorded numbers of a job."""

from dataclasses import dataclass
from typing import Any

from lockstep_proto.v1 import service_pb2


@dataclass(frozen=True)
class History:
    """Columns by step and by epoch: dicts of lists of equal length. What was not measured is NaN.

    steps: step, loss, gradient_norm, learning_rate. epochs: epoch, loss, accuracy, validation_loss,
    validation_accuracy, duration_s.
    """

    steps: dict[str, list[Any]]
    epochs: dict[str, list[Any]]

    @classmethod
    def from_message(cls, message: service_pb2.History) -> "History":
        """Return the columns of a message."""
        return cls(_columns(message.steps), _columns(message.epochs))

    def __repr__(self) -> str:
        return f"<History of {len(self.steps['step'])} steps, {len(self.epochs['epoch'])} epochs>"


def _columns(message: Any) -> dict[str, list[Any]]:
    return {field.name: list(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}
