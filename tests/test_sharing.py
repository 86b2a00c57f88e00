"""The memory that a server shares with a worker: whose it is at what time, and what is refused."""

import errno
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

from lockstep_proto import codec, shared
from lockstep_proto.codec import NodeChunk, ParameterChunk, Reference, Sums
from lockstep_server import sharing
from lockstep_server.sharing import MOST_LENT, Rooms
from lockstep_worker.sharing import Memory

MACHINE = "here"
NUM_BYTES = 40 * mmap.PAGESIZE + 100  # of a room, and of a chunk's values
ENDS_OF_ROOMS = [shared.HEAD_BYTES + number * 41 * mmap.PAGESIZE - 4 for number in (1, shared.NUM_ROOMS)]
VALUES = np.arange(NUM_BYTES // 4, dtype=np.float32)

pytestmark = pytest.mark.skipif(not shared.machine(), reason="this system has no memory to share")


class Ends:
    """The memory of one stream, from the server's end and from the worker's."""

    def __init__(self):
        self.rooms = Rooms(MACHINE)
        self.rooms.room(NUM_BYTES)  # the first one
        self.join()

    def join(self):
        """Let another worker in, or the same one again."""
        self.sharing = self.rooms.share(MACHINE, NUM_BYTES)
        self.worker = Memory(self.sharing.place)
        self.sharing.found()

    def version(self, value):
        """Return the memory of a version, all of whose bytes are `value`."""
        room = self.rooms.room(NUM_BYTES)
        room[:] = bytes([value]) * NUM_BYTES
        return room.toreadonly()

    def number(self, data):
        """Return the room in which something lies; None if it lies in none."""
        found = self.rooms.find(data)
        return found and found[0]

    def lend(self, data):
        """Lend something to the worker. Return the chunk that comes of it there."""
        return self.worker.found(ParameterChunk(1, 2, 3, b"", self.sharing.lend(data)))


@pytest.fixture
def ends():
    return Ends()


def chunk(step=1):
    return NodeChunk(1, step, (0, 2), 3, Sums(1.0, 2.0, 3.0), 0.5, VALUES.data)


def values(found):
    """Return the bytes of a chunk's values, where they lie."""
    return found.data[found.place.offset : found.place.offset + found.place.num_bytes]


# Parameters.


def test_a_chunk_is_read_where_the_server_has_made_it(ends):
    version = ends.version(7)
    found = ends.lend(version[100:300])
    assert found[:3] == (1, 2, 3)
    assert found.place == Reference(100, 200)
    assert values(found) == version[100:300]
    assert np.frombuffer(found.data, np.uint8).ctypes.data % mmap.PAGESIZE == 0
    assert found.data.readonly


def test_chunks_of_a_version_lie_in_one_piece_of_memory(ends):
    version = ends.version(7)
    addresses = {np.frombuffer(ends.lend(part).data, np.uint8).ctypes.data for part in (version[:500], version[500:])}
    assert len(addresses) == 1


def test_a_version_that_was_made_before_the_worker_came_is_read_there_too():
    rooms = Rooms(MACHINE)
    version = rooms.room(NUM_BYTES).toreadonly()
    sharing = rooms.share(MACHINE, NUM_BYTES)
    sharing.found()
    assert sharing.lend(version) == Reference(shared.HEAD_BYTES, NUM_BYTES)


def test_a_small_chunk_of_a_version_that_is_shared_is_lent_too(ends):
    assert values(ends.lend(ends.version(7)[-4:])) == bytes([7]) * 4


def test_what_lies_elsewhere_is_not_lent(ends):
    assert ends.sharing.lend(bytes(NUM_BYTES)) is None


def test_nothing_is_lent_before_the_worker_has_found_it():
    rooms = Rooms(MACHINE)
    version = rooms.room(NUM_BYTES).toreadonly()
    sharing = rooms.share(MACHINE, NUM_BYTES)
    assert sharing.lend(version) is None
    with pytest.raises(ValueError, match="there is no message of 200000 bytes at "):
        sharing.message(Reference(shared.HEAD_BYTES, 200_000))


@pytest.mark.parametrize("machine", ["", "elsewhere"])
def test_a_worker_on_another_machine_shares_nothing(machine):
    for rooms in (Rooms(MACHINE), Rooms("")):
        rooms.room(NUM_BYTES)
        assert rooms.share(machine, NUM_BYTES) is None


def test_a_server_that_has_run_out_of_files_shares_nothing_more_with_anybody(monkeypatch):
    rooms = Rooms(MACHINE)
    rooms.room(NUM_BYTES)

    def refuse(*args):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(sharing.os, "memfd_create", refuse)
    assert rooms.share(MACHINE, NUM_BYTES) is None
    monkeypatch.undo()
    assert rooms.share(MACHINE, NUM_BYTES) is None
    assert rooms.share("", NUM_BYTES) is None


def test_nothing_is_shared_for_a_job_whose_messages_are_all_small():
    rooms = Rooms(MACHINE)
    rooms.room(shared.LEAST_BYTES - 1)
    assert rooms.share(MACHINE, shared.LEAST_BYTES - 100) is None


def test_a_system_that_makes_no_such_file_is_asked_once(monkeypatch):
    num_files = len(os.listdir("/proc/self/fd"))

    def refuse(*args):
        raise OSError(errno.EINVAL, "no seals here")

    told = []
    monkeypatch.setattr(sharing.log, "warning", lambda words, error: told.append(str(error)))
    monkeypatch.setattr(sharing.fcntl, "fcntl", refuse)
    rooms = Rooms(MACHINE)
    assert len(rooms.room(NUM_BYTES)) == NUM_BYTES
    monkeypatch.undo()
    rooms.room(NUM_BYTES)
    assert rooms.share(MACHINE, NUM_BYTES) is None
    assert told == ["[Errno 22] no seals here"]
    assert len(os.listdir("/proc/self/fd")) == num_files


def test_a_version_stays_as_it_is_until_the_server_and_the_worker_have_let_go_of_it(ends):
    version = ends.version(1)
    number = ends.number(version)
    found = ends.lend(version)
    del version  # the server itself forgets it
    view = np.frombuffer(found.data, np.float32)[10:20].reshape(2, 5)
    before = view.copy()
    del found
    others = [ends.version(value) for value in range(2, 2 + shared.NUM_ROOMS)]
    assert number not in map(ends.number, others)
    np.testing.assert_array_equal(view, before)
    del view
    assert ends.number(ends.version(50)) == number


def test_all_chunks_of_a_version_have_to_be_let_go(ends):
    version = ends.version(1)
    held = [ends.lend(version[:500]), ends.lend(version[500:])]
    on_its_way = ends.sharing.lend(version[:500])
    del version
    held.clear()
    others = [ends.version(2) for _ in range(shared.NUM_ROOMS)]
    assert [ends.number(other) is None for other in others[-2:]] == [False, True], "one room is not free"
    found = ends.worker.found(ParameterChunk(1, 2, 3, b"", on_its_way))
    assert set(values(found)) == {1}


@pytest.mark.parametrize("first", [0, 1, 2])
def test_versions_are_let_go_in_any_order(ends, first):
    versions = [ends.version(value) for value in range(3)]
    held = [ends.lend(version) for version in versions]
    number = ends.number(versions[first])
    del versions, held[first]
    assert ends.number(ends.version(50)) == number
    assert [set(values(found)) for found in held] == [{value} for value in range(3) if value != first]


def test_a_room_is_lent_again_and_again(ends):
    """Each version is let go when the next one has come, as by a worker that keeps up."""
    present, numbers = None, set()
    for value in range(1, 100):
        version = ends.version(value)
        numbers.add(ends.number(version))
        present = [ends.lend(version[:500]), ends.lend(version[500:])]
        assert [set(values(found)) for found in present] == [{value}] * 2
    assert len(numbers) == 2


def test_two_workers_have_both_to_let_go(ends):
    version = ends.version(1)
    first = ends.lend(version)
    other = ends.sharing, ends.worker
    ends.join()
    second = ends.lend(version)
    del version, first
    rooms = [ends.version(2) for _ in range(shared.NUM_ROOMS)]
    assert set(values(second)) == {1}
    del rooms, second, other
    rooms = [ends.version(3) for _ in range(shared.NUM_ROOMS)]
    assert ends.number(rooms[-1]) is not None


def test_a_worker_that_lets_nothing_go_is_sent_the_rest_through_the_stream(ends):
    held = [ends.lend(ends.version(value)) for value in range(MOST_LENT)]
    version = ends.version(50)
    assert ends.sharing.lend(version) is None
    held.pop(1)
    assert ends.sharing.lend(version) is not None


def test_versions_for_which_there_is_no_room_go_through_the_stream(ends):
    versions = [ends.version(value) for value in range(shared.NUM_ROOMS + 1)]
    assert [ends.number(version) is None for version in versions] == [False] * shared.NUM_ROOMS + [True]
    assert ends.sharing.lend(versions[-1]) is None
    assert [set(version) for version in versions] == [{value} for value in range(shared.NUM_ROOMS + 1)]


def test_the_rooms_of_a_worker_that_has_gone_are_free_and_what_it_still_reads_is_there(ends):
    found = ends.lend(ends.version(1))
    del ends.sharing
    rooms = [ends.version(2) for _ in range(shared.NUM_ROOMS)]
    assert all(ends.number(room) is not None for room in rooms)
    assert set(values(found)) == {2}, "nothing comes of that"
    del ends.rooms, rooms, ends.worker
    assert set(values(found)) == {2}


@pytest.mark.parametrize("offset", [0, shared.HEAD_BYTES - 4, 1 << 40, 2**64 - 1, *ENDS_OF_ROOMS])
def test_a_chunk_that_lies_in_no_room_is_refused(ends, offset):
    with pytest.raises(ValueError, match=f"there is no chunk of 8 bytes at {offset}"):
        ends.worker.found(ParameterChunk(1, 2, 3, b"", Reference(offset, 8)))


def test_the_parameters_cannot_be_written_by_the_worker(ends):
    with pytest.raises(TypeError, match="read-only"):
        ends.lend(ends.version(1)).data[0] = 2
    place = ends.sharing.place.parameters
    descriptor = os.open(f"/proc/{place.pid}/fd/{place.descriptor}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, place.num_bytes)
    finally:
        os.close(descriptor)


# Gradients.


def test_a_chunk_is_read_where_the_worker_has_written_it(ends):
    read = codec.decode_worker_message(ends.sharing.message(ends.worker.write(chunk())))
    assert read._replace(data=None) == chunk()._replace(data=None)
    assert (np.frombuffer(read.data, np.float32) == VALUES).all()


def test_a_slot_is_given_back_when_nobody_refers_to_its_message(ends):
    first = ends.worker.write(chunk())
    values = np.frombuffer(codec.decode_worker_message(ends.sharing.message(first)).data, np.float32)
    second = ends.worker.write(chunk(2))
    assert second.offset != first.offset
    part = values[5:]
    del values
    assert ends.worker.write(chunk(3)).offset not in (first.offset, second.offset)
    del part
    assert ends.worker.write(chunk(4)).offset == first.offset


def test_a_worker_may_be_a_gradient_of_100_mb_ahead(ends):
    assert ends.sharing.place.slots.num_bytes >= 100e6


def mapped_bytes(address):
    """How much of the mapping at an address is in memory, and counts as this process's."""
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags")
    (mapping,) = [mapping for mapping in mappings if f"\n{address:x}-" in mapping]
    return 1024 * int(re.search(r"^Rss: +(\d+) kB", mapping, re.M)[1])


@pytest.mark.parametrize(("kept", "is_kept"), [(1 << 30, True), (0, False)])
def test_slots_beyond_those_that_are_kept_mapped_are_not_once_they_are_given_back(ends, monkeypatch, kept, is_kept):
    monkeypatch.setattr(sharing, "KEPT_BYTES", kept)
    begin = np.frombuffer(ends.sharing._slots.map, np.uint8).ctypes.data
    before = mapped_bytes(begin)
    for value in range(3):
        message = ends.sharing.message(ends.worker.write(chunk(value)))
        assert codec.decode_worker_message(message).step == value
        assert bytes(message).endswith(VALUES.tobytes())
        assert mapped_bytes(begin) >= before + VALUES.nbytes
        del message
        assert (mapped_bytes(begin) >= before + VALUES.nbytes) == is_kept


def test_a_worker_without_a_free_slot_sends_through_the_stream(ends):
    num_slots = 0
    while ends.worker.write(chunk()) is not None:
        num_slots += 1
    assert num_slots == (ends.sharing.place.slots.num_bytes - shared.HEAD_BYTES) // ends.sharing.place.slot_bytes


def test_a_chunk_that_is_small_or_does_not_fit_goes_through_the_stream(ends):
    small = chunk()._replace(data=VALUES[:10].data)
    large = chunk()._replace(data=np.zeros(2 * NUM_BYTES, np.float32).data)
    assert [ends.worker.write(small), ends.worker.write(large)] == [None, None]


@pytest.mark.parametrize(
    "change",
    [
        {"offset": shared.HEAD_BYTES + 4},
        {"offset": 0},
        {"offset": 1 << 40},
        {"num_bytes": 1 << 24},
        {"offset": 2**64 - 1},
    ],
)
def test_a_reference_to_what_is_no_slot_is_refused(ends, change):
    with pytest.raises(ValueError, match="there is no message of "):
        ends.sharing.message(ends.worker.write(chunk())._replace(**change))


def test_a_slot_that_is_in_use_is_not_taken_for_another_message(ends):
    reference = ends.worker.write(chunk())
    message = ends.sharing.message(reference)
    with pytest.raises(ValueError, match="there is no message of "):
        ends.sharing.message(reference)
    del message
    assert len(ends.sharing.message(reference)) == reference.num_bytes


# The files.


def test_a_file_cannot_be_cut_off_by_the_worker(ends):
    place = ends.sharing.place.slots
    descriptor = os.open(f"/proc/{place.pid}/fd/{place.descriptor}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def test_another_file_is_not_taken_for_it(ends):
    place = ends.sharing.place
    place.slots.token = bytes(shared.TOKEN_BYTES)
    with pytest.raises(ValueError, match="it is another file"):
        Memory(place)


def test_a_file_on_disk_is_not_taken_for_it(ends, tmp_path):
    place = ends.sharing.place
    with (tmp_path / "file").open("w+b") as file:
        file.write(place.slots.token + bytes(place.slots.num_bytes - shared.TOKEN_BYTES))
        file.flush()
        place.slots.descriptor = file.fileno()
        with pytest.raises(OSError, match="Invalid argument"):
            Memory(place)


@pytest.mark.parametrize("num_bytes", [-1, 0, 100])
def test_a_file_that_is_too_short_is_not_taken_for_it(ends, num_bytes):
    place = ends.sharing.place
    place.slots.num_bytes = num_bytes
    with pytest.raises(ValueError, match="it is too short"):
        Memory(place)


def test_a_file_that_is_gone_is_not_found(ends):
    place = ends.sharing.place
    del ends.sharing
    with pytest.raises(OSError, match=f"/proc/{os.getpid()}/fd/"):
        Memory(place)
