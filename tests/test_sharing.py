"""The memory that a server shares with a worker: whose it is at what time, and what is refused."""

import errno
import mmap
import os

import numpy as np
import pytest

from lockstep_proto import codec, shared
from lockstep_proto.codec import NodeChunk, Reference, Sums
from lockstep_server import sharing
from lockstep_server.sharing import NUM_ROOMS, Rooms
from lockstep_worker.sharing import Memory

MACHINE = "here"
NUM_BYTES = 40 * mmap.PAGESIZE + 100  # of a room, and of a chunk's values
VALUES = np.arange(NUM_BYTES // 4, dtype=np.float32)

pytestmark = pytest.mark.skipif(not shared.machine(), reason="this system has no memory to share")


class Ends:
    """The memory of one stream, from the server's end and from the worker's."""

    def __init__(self, most_lent=100):
        self.rooms = Rooms(MACHINE)
        self.rooms.room(NUM_BYTES)  # the first one
        self.sharing = self.rooms.share(MACHINE, NUM_BYTES, most_lent)
        self.worker = Memory(self.sharing.place)
        self.sharing.found()

    def version(self, value):
        """Return the message of a version, all of whose bytes are `value`."""
        room = self.rooms.room(NUM_BYTES)
        room[:] = bytes([value]) * NUM_BYTES
        return room.toreadonly()

    def send(self, message):
        """Send a message to the worker. Return what it sees there."""
        return self.worker.message(codec.read_reference(self.sharing.refer(message)))


@pytest.fixture
def ends():
    return Ends()


def chunk(step=1):
    return NodeChunk(1, step, (0, 2), 3, Sums(1.0, 2.0, 3.0), 0.5, VALUES.data)


# Parameters.


def test_a_message_is_read_where_the_server_has_made_it(ends):
    message = ends.version(7)
    seen = ends.send(message)
    assert seen == message
    assert seen.readonly


def test_a_message_that_was_made_before_the_worker_came_is_read_there_too():
    rooms = Rooms(MACHINE)
    message = rooms.room(NUM_BYTES).toreadonly()
    sharing = rooms.share(MACHINE, NUM_BYTES, 100)
    sharing.found()
    assert sharing.refer(message) is not message


def test_a_small_message_goes_through_the_stream(ends):
    message = ends.version(7)[: shared.LEAST_BYTES - 1]
    assert ends.sharing.refer(message) is message


def test_nothing_is_referred_to_before_the_worker_has_found_it():
    rooms = Rooms(MACHINE)
    message = rooms.room(NUM_BYTES).toreadonly()
    sharing = rooms.share(MACHINE, NUM_BYTES, 100)
    assert sharing.refer(message) is message
    with pytest.raises(ValueError, match="there is no message of 200000 bytes at "):
        sharing.message(Reference(shared.HEAD_BYTES, 200_000))


@pytest.mark.parametrize("machine", ["", "elsewhere"])
def test_a_worker_on_another_machine_shares_nothing(machine):
    for rooms in (Rooms(MACHINE), Rooms("")):
        rooms.room(NUM_BYTES)
        assert rooms.share(machine, NUM_BYTES, 100) is None


def test_a_server_that_has_run_out_of_files_shares_nothing_more_with_anybody(monkeypatch):
    rooms = Rooms(MACHINE)
    rooms.room(NUM_BYTES)

    def refuse(*args):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(sharing.os, "memfd_create", refuse)
    assert rooms.share(MACHINE, NUM_BYTES, 100) is None
    monkeypatch.undo()
    assert rooms.share(MACHINE, NUM_BYTES, 100) is None
    assert rooms.share("", NUM_BYTES, 100) is None


def test_nothing_is_shared_for_a_job_whose_messages_are_all_small():
    rooms = Rooms(MACHINE)
    rooms.room(shared.LEAST_BYTES - 1)
    assert rooms.share(MACHINE, shared.LEAST_BYTES - 100, 100) is None


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
    assert rooms.share(MACHINE, NUM_BYTES, 100) is None
    assert told == ["[Errno 22] no seals here"]
    assert len(os.listdir("/proc/self/fd")) == num_files


def test_a_version_stays_as_it_is_until_nobody_has_it_and_the_worker_has_read_it(ends):
    seen = ends.send(ends.version(1))  # the server itself forgets it
    for value in range(2, 2 + NUM_ROOMS):
        ends.version(value)
    assert set(seen) == {1}
    ends.worker.read()
    ends.sharing.refer(b"a heartbeat")  # takes note of what was read
    ends.version(50)
    assert set(seen) == {50}


def test_a_worker_that_reads_nothing_is_sent_the_rest_through_the_stream():
    ends = Ends(most_lent=2)
    versions = [ends.version(value) for value in range(3)]
    assert [ends.sharing.refer(version) is version for version in versions] == [False, False, True]
    ends.worker.read()
    assert ends.sharing.refer(versions[2]) is not versions[2]


def test_versions_for_which_there_is_no_room_go_through_the_stream(ends):
    versions = [ends.version(value) for value in range(NUM_ROOMS + 1)]
    assert [ends.sharing.refer(version) is version for version in versions] == [False] * NUM_ROOMS + [True]
    assert [set(version) for version in versions] == [{value} for value in range(NUM_ROOMS + 1)]


def test_the_parameters_cannot_be_written_by_the_worker(ends):
    with pytest.raises(TypeError, match="read-only"):
        ends.send(ends.version(1))[0] = 2
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
