"""The memory of a server on the same machine, as a worker finds it; see lockstep_proto.shared."""

import fcntl
import mmap
import os
import threading

from lockstep_proto import codec, shared
from lockstep_proto.codec import NodeChunk, Reference
from lockstep_proto.v1 import training_pb2


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
        self._num_read = shared.num_read(self._head)
        self._lock = threading.Lock()

    def message(self, reference: Reference) -> memoryview:
        """Return a message of the server. It stays as it is until `read` is called."""
        return self._parameters[reference.offset : reference.offset + reference.num_bytes]

    def read(self) -> None:
        """Tell the server that one more message has been read."""
        self._num_read += 1

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
