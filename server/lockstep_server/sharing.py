"""Memory that a job's server shares with those workers that are on its machine; see lockstep_proto.shared."""

import contextlib
import fcntl
import heapq
import logging
import mmap
import os
import secrets
import weakref

import numpy as np

from lockstep_proto import codec, shared
from lockstep_proto.codec import Data, Reference
from lockstep_proto.v1 import training_pb2
from lockstep_server.room import own_memory

log = logging.getLogger(__name__)
MOST_LENT = 4  # rooms: a worker computes from one version, has the next, takes in another; and one is on its way
# Of a worker, so that it may be a gradient of 100 MB ahead of another. A page takes memory when it is first written to.
SLOTS_BYTES = 128 << 20
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
        self._sharings = weakref.WeakSet[Sharing]()

    def room(self, num_bytes: int) -> memoryview:
        """Return memory that belongs to the caller for as long as somebody refers to it. The first is the largest.

        A worker that has been lent some of it refers to it, too.
        """
        if self._file is None and self._machine and num_bytes >= shared.LEAST_BYTES:
            self._make_rooms(num_bytes)
        for sharing in self._sharings:
            sharing.look()
        if self._file is not None and self._free and num_bytes <= self._room_bytes:
            number = heapq.heappop(self._free)
            room = np.frombuffer(self._file.map, np.uint8, num_bytes, shared.HEAD_BYTES + number * self._room_bytes)
            weakref.finalize(room, heapq.heappush, self._free, number).atexit = False
            return room.data
        return own_memory(num_bytes)

    def share(self, machine: str, chunk_bytes: int) -> "Sharing | None":
        """Share memory with a worker; None if it is on another machine, or if all of the job's messages are small.

        A chunk of a gradient has at most `chunk_bytes`.
        """
        largest_bytes = codec.NODE_HEADER_BYTES + chunk_bytes
        if self._file is None or not machine or machine != self._machine or largest_bytes < shared.LEAST_BYTES:
            return None
        try:
            sharing = Sharing(self, self._file.place, self._room_bytes, largest_bytes)
        except OSError as error:
            self._cannot_be_shared(error)
            return None
        self._sharings.add(sharing)
        return sharing

    def find(self, data: Data) -> tuple[int, int] | None:
        """Return in which room something lies, and where in the file; None if it does not."""
        offset = _address(data) - self._address
        if self._file is None or not 0 <= offset < self._file.place.num_bytes:
            return None
        return (offset - shared.HEAD_BYTES) // self._room_bytes, offset

    def _make_rooms(self, num_bytes: int) -> None:
        self._room_bytes = _whole_pages(num_bytes)
        try:
            self._file = File(shared.HEAD_BYTES + shared.NUM_ROOMS * self._room_bytes, writable=False)
        except OSError as error:
            self._cannot_be_shared(error)
            return
        self._address = _address(self._file.map)
        self._free = list(range(shared.NUM_ROOMS))

    def _cannot_be_shared(self, error: OSError) -> None:
        log.warning("no memory can be shared with workers: %s", error)
        self._machine = ""


class Sharing:
    """What is shared with one worker on one stream. `place` tells the worker where it is."""

    def __init__(self, rooms: Rooms, parameters: training_pb2.MemoryFile, room_bytes: int, largest_bytes: int) -> None:
        self._rooms = rooms
        self._slot_bytes = _whole_pages(largest_bytes)
        self._num_slots = min(max(SLOTS_BYTES // self._slot_bytes, 4), shared.MAX_SLOTS)
        self._slots = File(shared.HEAD_BYTES + self._num_slots * self._slot_bytes, writable=True)
        self.place = training_pb2.SharedMemory(
            parameters=parameters, slots=self._slots.place, slot_bytes=self._slot_bytes, room_bytes=room_bytes
        )
        self._found = False  # by the worker
        self._taken: set[int] = set()  # slots whose messages are in use here
        self._num_lent = [0] * shared.NUM_ROOMS  # chunks in each room, ever
        self._num_let_go = shared.num_let_go(self._slots.map)
        self._lent: dict[int, Data] = {}  # something of each room that the worker may still have chunks in

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

    def lend(self, data: Data) -> Reference | None:
        """Return where the worker finds the values of a chunk; None if it does not, and they are to be sent.

        They stay as they are until it has let go of all that it was lent in their room. One that lets nothing go is
        sent what follows, and then the end of the stream sees how far behind it is.
        """
        found = self._rooms.find(data) if self._found else None
        if found is None:
            return None
        number, offset = found
        if number not in self._lent and len(self._lent) >= MOST_LENT:
            self.look()
            if len(self._lent) >= MOST_LENT:
                return None
        self._lent[number] = data
        self._num_lent[number] += 1
        return Reference(offset, len(data))

    def look(self) -> None:
        """Take note of what the worker has let go of."""
        let_go = [number for number in self._lent if self._num_let_go[number] >= self._num_lent[number]]
        for number in let_go:
            del self._lent[number]

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
