"""What a worker makes of the server's messages: a state machine without I/O and threads.

The worker holds the present version whole and fills the next one chunk by chunk. A Work message says that the next
version is whole, and what to compute from it. A version that is being computed from is left alone until it is given
back, whatever comes in meanwhile; so there are two arrays, and a third one where a computation takes longer than the
others' step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.codec import ParameterChunk
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.v1 import job_pb2, training_pb2

Array = npt.NDArray[Any]
Range = tuple[int, int]


class ProtocolError(RuntimeError):
    """The server sent what cannot be at this point."""


@dataclass(frozen=True, slots=True)
class Task:
    """Shards to compute from the present version."""

    attempt: int
    version: int
    kind: training_pb2.WorkKind.ValueType
    epoch: int
    step_in_epoch: int
    ranges: tuple[Range, ...]


class Following:
    """The versions of one job's parameters as they come in."""

    def __init__(self, spec: job_pb2.JobSpec, chunk_elements: int) -> None:
        layout = Layout.from_spec(spec)
        self._chunking = Chunking(layout.num_parameters, chunk_elements)
        self.parameters: Array = np.zeros(layout.num_parameters, layout.dtype)
        self._incoming: Array | None = None
        self._spare: list[Array] = []
        self._lent: Array | None = None
        self._layout = layout
        self.restart()

    def restart(self) -> None:
        """Begin again as a newcomer, who has no version."""
        self._version = -1
        self._incoming_version = -1
        self._arrived: set[int] = set()

    def chunk(self, chunk: ParameterChunk) -> None:
        """Take in a chunk. The first one of another version begins that version."""
        if chunk.version != self._incoming_version:
            self._begin(chunk.version)
        lo, hi = self._chunking.range(chunk.chunk_index)
        self._incoming[lo:hi] = np.frombuffer(chunk.data, self._layout.dtype)  # type: ignore[index]
        self._arrived.add(chunk.chunk_index)

    def work(self, work: training_pb2.Work) -> Task | None:
        """Take in what to do with a version. Return None when that is to wait.

        Raises ProtocolError if the version is not whole.
        """
        if work.version != self._version:
            self._turn_to(work.version)
        if work.kind == training_pb2.WORK_KIND_WAIT:
            return None
        return Task(
            attempt=work.attempt,
            version=work.version,
            kind=work.kind,
            epoch=work.epoch,
            step_in_epoch=work.step_in_epoch,
            ranges=tuple((part.lo, part.hi) for part in work.ranges),
        )

    def lend(self) -> Array:
        """Return the present version's parameters, which stay as they are until they are given back."""
        assert self._lent is None
        self._lent = self.parameters
        return self._lent

    def give_back(self) -> None:
        """Take note that nobody computes from what was lent any more."""
        if self._lent is not None and self._lent is not self.parameters:
            self._spare.append(self._lent)
        self._lent = None

    def _begin(self, version: int) -> None:
        if self._incoming is None:
            self._incoming = self._spare.pop() if self._spare else np.empty_like(self.parameters)
        self._incoming_version = version
        self._arrived.clear()

    def _turn_to(self, version: int) -> None:
        if self._incoming_version != version or len(self._arrived) != self._chunking.num_chunks:
            have = f"{len(self._arrived)} of {self._chunking.num_chunks} chunks of version {self._incoming_version}"
            raise ProtocolError(f"version {version} is not whole: have {have}")
        assert self._incoming is not None
        if self.parameters is not self._lent:
            self._spare.append(self.parameters)
        self.parameters, self._incoming = self._incoming, None
        self._version = version
        self._incoming_version = -1
        self._arrived.clear()
