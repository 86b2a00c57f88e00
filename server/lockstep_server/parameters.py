"""The parameters of a version in the making: one flat vector, and the messages that carry its chunks."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.codec import ParameterChunk
from lockstep_proto.layout import Chunking
from lockstep_server.room import Room, own_memory

Array = npt.NDArray[Any]


class Draft:
    """A version in the making. Values are written where they go out from and stay, and so never copied.

    Its memory serves no other version as long as somebody has a part of it: what has gone out is not written any more.
    It is asked for when it is first written to: who has computed from the present version has let go of the one before.
    """

    def __init__(
        self, chunking: Chunking, dtype: "np.dtype[Any]", attempt: int, version: int, room: Room = own_memory
    ) -> None:
        self._chunking = chunking
        self._dtype = dtype
        self._attempt = attempt
        self._version = version
        self._room = room
        self._messages: list[ParameterChunk | None] = [None] * chunking.num_chunks

    @cached_property
    def _memory(self) -> memoryview:
        return self._room(self._chunking.num_parameters * self._dtype.itemsize)

    def values(self, chunk_index: int) -> Array:
        """Return where the values of a chunk are to be written before its message is made."""
        return np.frombuffer(self._memory[self._bytes(chunk_index)], self._dtype)

    def make(self, chunk_index: int) -> ParameterChunk:
        """Make the message of a chunk whose values have been written; it cannot be written."""
        data = self._memory[self._bytes(chunk_index)].toreadonly()
        message = ParameterChunk(self._attempt, self._version, chunk_index, data)
        self._messages[chunk_index] = message
        return message

    @property
    def messages(self) -> list[ParameterChunk]:
        """The messages that have been made, in the order of their chunks."""
        return [message for message in self._messages if message is not None]

    def whole(self) -> Array:
        """Return the flat vector, which cannot be written. All messages must have been made."""
        assert None not in self._messages
        return np.frombuffer(self._memory.toreadonly(), self._dtype)

    def _bytes(self, chunk_index: int) -> slice:
        lo, hi = self._chunking.range(chunk_index)
        return slice(lo * self._dtype.itemsize, hi * self._dtype.itemsize)
