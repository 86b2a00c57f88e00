"""Memory that a job's server shares with those workers that are on its machine; see lockstep_proto.shared."""

import contextlib
import fcntl
import heapq
import logging
import mmap
import os
import secrets
import weakref
from collections import deque

import numpy as np

from lockstep_proto import codec, shared
from lockstep_proto.codec import Data, Reference
from lockstep_proto.v1 import training_pb2
from lockstep_server.room import own_memory

log = logging.getLogger(__name__)
NUM_ROOMS = 8  # versions, present, next and on their way, twice; a page takes memory when it is first written to
SLOTS_BYTES = 128 << 20  # of a worker, so that it may be a gradient of 100 MB ahead of another; as above
KEPT_BYTES = 32 << 20  # of them; to find those beyond anew takes time, to keep them takes memory of the server
_SEAL_FUTURE_WRITE = 0x10  # of Linux 5.1; fcntl has no name for it


class File:
    """A file in memory. It lasts as long as somebody has it mapped. `writable`: by others, too. Raises OSError."""

    def __init__(self, num_bytes: int, *, writable: bool) -> None:
        descriptor = os.memfd_create("lockstep", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, num_bytes)
        self.map = mmap.mmap(descriptor, num_bytes)
        if not writable:
            with contextlib.suppress(OSError):  # of an older system
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # else its end could be taken from under us
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        token = secrets.token_bytes(shared.TOKEN_BYTES)
        self.map[: shared.TOKEN_BYTES] = token
        self.place = training_pb2.MemoryFile(pid=os.getpid(), descriptor=descriptor, num_bytes=num_bytes, token=token)


class Rooms:
    """The memory in which the versions of a job's parameters are made.

    `machine` is what workers must have in common with this server (lockstep_proto.shared); if empty, none has it.
    """

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._room_bytes = 0
        self._file: File | None = None
        self._address = 0
        self._free: list[int] = []

    def room(self, num_bytes: int) -> memoryview:
        """Return memory that belongs to the caller for as long as somebody refers to it. The first is the largest."""
        if self._file is None and self._machine and num_bytes >= shared.LEAST_BYTES:
            self._make_rooms(num_bytes)
        if self._file is not None and self._free and num_bytes <= self._room_bytes:
            number = heapq.heappop(self._free)
            room = np.frombuffer(self._file.map, np.uint8, num_bytes, shared.HEAD_BYTES + number * self._room_bytes)
            weakref.finalize(room, heapq.heappush, self._free, number).atexit = False
            return room.data
        return own_memory(num_bytes)

    def share(self, machine: str, chunk_bytes: int, most_lent: int) -> "Sharing | None":
        """Share memory with a worker; None if it is on another machine, or if all of the job's messages are small.

        A chunk of a gradient has at most `chunk_bytes`. Beyond `most_lent` messages that the worker has not read, all
        go through the stream, whose end then sees how far behind it is.
        """
        largest_bytes = codec.NODE_HEADER_BYTES + chunk_bytes
        if self._file is None or not machine or machine != self._machine or largest_bytes < shared.LEAST_BYTES:
            return None
        try:
            return Sharing(self, self._file.place, largest_bytes, most_lent)
        except OSError as error:
            self._cannot_be_shared(error)
            return None

    def offset(self, message: Data) -> int | None:
        """Return where a message lies in the file; None if it does not."""
        if self._file is None:
            return None
        offset = _address(message) - self._address
        return offset if 0 <= offset < self._file.place.num_bytes else None

    def _make_rooms(self, num_bytes: int) -> None:
        self._room_bytes = _whole_pages(num_bytes)
        try:
            self._file = File(shared.HEAD_BYTES + NUM_ROOMS * self._room_bytes, writable=False)
        except OSError as error:
            self._cannot_be_shared(error)
            return
        self._address = _address(self._file.map)
        self._free = list(range(NUM_ROOMS))

    def _cannot_be_shared(self, error: OSError) -> None:
        log.warning("no memory can be shared with workers: %s", error)
        self._machine = ""


class Sharing:
    """What is shared with one worker on one stream. `place` tells the worker where it is."""

    def __init__(self, rooms: Rooms, parameters: training_pb2.MemoryFile, largest_bytes: int, most_lent: int) -> None:
        self._rooms = rooms
        self._slot_bytes = _whole_pages(largest_bytes)
        self._num_slots = min(max(SLOTS_BYTES // self._slot_bytes, 4), shared.MAX_SLOTS)
        self._slots = File(shared.HEAD_BYTES + self._num_slots * self._slot_bytes, writable=True)
        self._num_read = shared.num_read(self._slots.map)
        self.place = training_pb2.SharedMemory(
            parameters=parameters, slots=self._slots.place, slot_bytes=self._slot_bytes
        )
        self._found = False  # by the worker
        self._taken: set[int] = set()  # slots whose messages are in use here
        self._lent: deque[Data] = deque()  # messages that the worker may not have read yet
        self._most_lent = most_lent
        self._num_given_back = 0

    def found(self) -> None:
        """Take note that the worker has found it."""
        self._found = True

    def message(self, reference: Reference) -> memoryview:
        """Return a message of the worker; its slot is free again when nobody refers to it. Raises ValueError."""
        number, rest = divmod(reference.offset - shared.HEAD_BYTES, self._slot_bytes)
        fits = rest == 0 and 0 <= number < self._num_slots and reference.num_bytes <= self._slot_bytes
        if not self._found or not fits or number in self._taken:
            raise ValueError(f"there is no message of {reference.num_bytes} bytes at {reference.offset}")
        self._taken.add(number)
        message = np.frombuffer(self._slots.map, np.uint8, reference.num_bytes, reference.offset)
        weakref.finalize(message, self._give_back, number).atexit = False
        return message.data

    def refer(self, message: Data) -> Data:
        """Return what is to be sent in place of a message: a reference to it, where the worker has the memory."""
        while self._lent and self._num_given_back < self._num_read[0]:
            self._lent.popleft()
            self._num_given_back += 1
        if not self._found or len(message) < shared.LEAST_BYTES or len(self._lent) >= self._most_lent:
            return message
        offset = self._rooms.offset(message)
        if offset is None:
            return message
        self._lent.append(message)
        return codec.encode_reference(Reference(offset, len(message)))

    def _give_back(self, number: int) -> None:
        self._taken.remove(number)
        if number * self._slot_bytes >= KEPT_BYTES:
            begin = shared.HEAD_BYTES + number * self._slot_bytes
            self._slots.map.madvise(mmap.MADV_DONTNEED, begin, self._slot_bytes)
        state = shared.STATES + number
        self._slots.map[state : state + 1] = shared.FREE


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _address(memory: "Data | mmap.mmap") -> int:
    return int(np.frombuffer(memory, np.uint8, 1).__array_interface__["data"][0])
