"""The memory of a server on the same machine, as a worker finds it; see lockstep_proto.shared."""

import fcntl
import mmap
import os
import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lockstep_proto import codec, shared
from lockstep_proto.codec import NodeChunk, ParameterChunk, Reference
from lockstep_proto.v1 import training_pb2

Array = npt.NDArray[Any]


class _Held(NamedTuple):
    """A room that somebody here refers to."""

    room: "weakref.ref[Array]"  # its bytes
    num_chunks: list[int]  # one number: how many chunks have come that lie there


class Memory:
    """The memory that belongs to one stream. Threads may write at the same time.

    Raises OSError or ValueError if it is not there.
    """

    def __init__(self, place: training_pb2.SharedMemory) -> None:
        self._parameters = memoryview(_find(place.parameters, os.O_RDONLY, mmap.ACCESS_READ))
        self._head = _find(place.slots, os.O_RDWR, mmap.ACCESS_WRITE)
        self._slots = memoryview(self._head)[shared.HEAD_BYTES :]
        self._slot_bytes = max(place.slot_bytes, 1)
        self._end_of_states = shared.STATES + len(self._slots) // self._slot_bytes
        self._room_bytes = max(place.room_bytes, 1)
        self._held: dict[int, _Held] = {}  # by the number of the room
        self._num_let_go = shared.num_let_go(self._head)
        self._lock = threading.Lock()
        self._count_lock = threading.RLock()  # a room may be let go anywhere, even where this is held

    def found(self, chunk: ParameterChunk) -> ParameterChunk:
        """Return a chunk that lies here with the room of its version as `data`, and its place in that.

        One thread at a time. The room stays as it is for as long as somebody refers to it. Raises ValueError.
        """
        assert chunk.place is not None
        number, offset = divmod(chunk.place.offset - shared.HEAD_BYTES, self._room_bytes)
        if not 0 <= number < shared.NUM_ROOMS or offset + chunk.place.num_bytes > self._room_bytes:
            raise ValueError(f"there is no chunk of {chunk.place.num_bytes} bytes at {chunk.place.offset}")
        room = self._room(number)
        self._held[number].num_chunks[0] += 1
        return chunk._replace(data=room.data, place=chunk.place._replace(offset=offset))

    def _room(self, number: int) -> Array:
        held = self._held.get(number)
        room = held and held.room()
        if room is None:
            begin = shared.HEAD_BYTES + number * self._room_bytes
            room = np.frombuffer(self._parameters, np.uint8, self._room_bytes, begin)
            self._held[number] = held = _Held(weakref.ref(room), [0])
            weakref.finalize(room, self._let_go, number, held.num_chunks).atexit = False
        return room

    def _let_go(self, number: int, num_chunks: list[int]) -> None:
        with self._count_lock:
            self._num_let_go[number] += num_chunks[0]

    def write(self, chunk: NodeChunk) -> Reference | None:
        """Write a message to a slot; None if no slot is free, or the message does not belong in one."""
        num_bytes = codec.NODE_HEADER_BYTES + memoryview(chunk.data).nbytes
        if not shared.LEAST_BYTES <= num_bytes <= self._slot_bytes:
            return None
        with self._lock:
            state = self._head.find(shared.FREE, shared.STATES, self._end_of_states)
            if state < 0:
                return None
            self._head[state : state + 1] = shared.TAKEN
        begin = (state - shared.STATES) * self._slot_bytes
        codec.write_node_chunk(self._slots[begin : begin + num_bytes], chunk)
        return Reference(shared.HEAD_BYTES + begin, num_bytes)


def _find(place: training_pb2.MemoryFile, mode: int, access: int) -> mmap.mmap:
    descriptor = os.open(f"/proc/{place.pid}/fd/{place.descriptor}", mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:  # which only a file in memory has
            raise ValueError("it could be cut off")
        if place.num_bytes < shared.HEAD_BYTES:
            raise ValueError("it is too short")
        found = mmap.mmap(descriptor, place.num_bytes, access=access)
    finally:
        os.close(descriptor)
    if found[: shared.TOKEN_BYTES] != place.token:
        raise ValueError("it is another file")
    return found
