"""The parameters of one version: the messages that carry them, shared by whoever sends or keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import codec
from lockstep_proto.layout import Chunking, Layout, digest_of_parts
from lockstep_server.room import Room, own_memory

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parameters:
    """One message a chunk, in order. What reads them may run in any thread."""

    layout: Layout
    messages: Sequence[codec.Data]

    def chunk(self, chunk_index: int) -> Array:
        """Return one chunk of the flat vector, as a view that cannot be written."""
        return np.frombuffer(self.messages[chunk_index], self.layout.dtype, offset=codec.PARAMETERS_HEADER_BYTES)

    def flat(self) -> Array:
        """Return a copy as one flat vector."""
        return np.concatenate([self.chunk(i) for i in range(len(self.messages))])

    def digest(self) -> str:
        """Return the digest of this model."""
        return digest_of_parts(self.layout, (self.chunk(i) for i in range(len(self.messages))))


class Draft:
    """The messages of a version in the making. Values are written where their message lies, and so never copied.

    All lie in one piece of memory, which serves no other version as long as somebody has one of them: what has gone out
    is not written any more.
    """

    def __init__(
        self, chunking: Chunking, dtype: "np.dtype[Any]", attempt: int, version: int, room: Room = own_memory
    ) -> None:
        self._chunking = chunking
        self._dtype = dtype
        self._attempt = attempt
        self._version = version
        self._stride = codec.PARAMETERS_HEADER_BYTES + chunking.chunk_elements * dtype.itemsize
        num_bytes = chunking.num_chunks * codec.PARAMETERS_HEADER_BYTES + chunking.num_parameters * dtype.itemsize
        self._memory = room(num_bytes)
        self.messages: list[codec.Data | None] = [None] * chunking.num_chunks  # those that are made

    def values(self, chunk_index: int) -> Array:
        """Return where the values of a chunk are to be written before its message is made."""
        begin, end = self._place(chunk_index)
        return np.frombuffer(self._memory[begin + codec.PARAMETERS_HEADER_BYTES : end], self._dtype)

    def make(self, chunk_index: int) -> codec.Data:
        """Make the message of a chunk whose values have been written; it cannot be written."""
        begin, end = self._place(chunk_index)
        codec.write_parameter_header(self._memory[begin:end], self._attempt, self._version, chunk_index)
        message = self.messages[chunk_index] = self._memory[begin:end].toreadonly()
        return message

    def whole(self) -> list[codec.Data]:
        """Return all messages. Each must have been made."""
        assert None not in self.messages
        return [message for message in self.messages if message is not None]

    def _place(self, chunk_index: int) -> tuple[int, int]:
        lo, hi = self._chunking.range(chunk_index)
        begin = chunk_index * self._stride
        return begin, begin + codec.PARAMETERS_HEADER_BYTES + (hi - lo) * self._dtype.itemsize
