"""What a worker makes of the server's messages: a state machine without I/O and threads.

The worker holds the present version whole and fills the next one chunk by chunk. A Work message says that the next
version is whole, and what to compute from it.
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
    evaluate: bool
    epoch: int
    step_in_epoch: int
    ranges: tuple[Range, ...]


class Following:
    """The versions of one job's parameters as they come in."""

    def __init__(self, spec: job_pb2.JobSpec, chunk_elements: int) -> None:
        layout = Layout.from_spec(spec)
        self._chunking = Chunking(layout.num_parameters, chunk_elements)
        self.parameters: Array = np.zeros(layout.num_parameters, layout.dtype)
        self._incoming: Array = np.zeros(layout.num_parameters, layout.dtype)
        self._layout = layout
        self._version = -1
        self._incoming_version = -1
        self._arrived: set[int] = set()

    def chunk(self, chunk: ParameterChunk) -> None:
        """Take in a chunk. The first one of another version begins that version."""
        if chunk.version != self._incoming_version:
            self._incoming_version = chunk.version
            self._arrived.clear()
        lo, hi = self._chunking.range(chunk.chunk_index)
        self._incoming[lo:hi] = np.frombuffer(chunk.data, self._layout.dtype)
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
            evaluate=work.kind == training_pb2.WORK_KIND_EVALUATE,
            epoch=work.epoch,
            step_in_epoch=work.step_in_epoch,
            ranges=tuple((part.lo, part.hi) for part in work.ranges),
        )

    def _turn_to(self, version: int) -> None:
        if self._incoming_version != version or len(self._arrived) != self._chunking.num_chunks:
            have = f"{len(self._arrived)} of {self._chunking.num_chunks} chunks of version {self._incoming_version}"
            raise ProtocolError(f"version {version} is not whole: have {have}")
        self.parameters, self._incoming = self._incoming, self.parameters
        self._version = version
        self._incoming_version = -1
        self._arrived.clear()
