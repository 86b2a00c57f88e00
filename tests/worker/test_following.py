import weakref

import numpy as np
import pytest

from lockstep_proto import bfloat16
from lockstep_proto.codec import ParameterChunk, Reference
from lockstep_proto.spec import read_spec, to_dict
from lockstep_proto.v1 import training_pb2
from lockstep_worker.following import Following, Front, ProtocolError, Task

SPEC = read_spec({"network": {"inputs": 2, "layers": [{"units": 2}]}, "loss": "norm", "batch_size": 8, "epochs": 1})
STEP, WAIT = training_pb2.WORK_KIND_STEP, training_pb2.WORK_KIND_WAIT


def chunk(version, index, value):
    size = 4 if index == 0 else 2
    return ParameterChunk(1, version, index, np.full(size, value, np.float32).tobytes())


def work(version, kind=STEP, ranges=((0, 8),)):
    parts = [training_pb2.ShardRange(lo=lo, hi=hi) for lo, hi in ranges]
    return training_pb2.Work(attempt=1, version=version, kind=kind, epoch=1, step_in_epoch=2, ranges=parts)


@pytest.fixture
def following():
    made = Following(SPEC, 4)
    for index in (1, 0):
        made.chunk(chunk(0, index, 7.0))
    return made


def test_a_whole_version_becomes_the_present_one(following):
    task = following.work(work(0))
    assert task == Task(attempt=1, version=0, kind=STEP, epoch=1, step_in_epoch=2, ranges=((0, 8),))
    np.testing.assert_array_equal(following.parameters(STEP), 7.0)


def test_the_present_version_stays_while_the_next_one_comes(following):
    following.work(work(0))
    following.chunk(chunk(1, 0, 8.0))
    np.testing.assert_array_equal(following.parameters(STEP), 7.0)
    assert following.work(work(0, ranges=((2, 3),))).ranges == ((2, 3),), "further shards of the same step"
    following.chunk(chunk(1, 1, 8.0))
    following.work(work(1))
    np.testing.assert_array_equal(following.parameters(STEP), 8.0)


def test_a_version_that_is_not_whole_is_an_error(following):
    following.work(work(0))
    following.chunk(chunk(1, 0, 8.0))
    with pytest.raises(ProtocolError, match="version 1 is not whole: have 1 of 2 chunks of version 1"):
        following.work(work(1))


def test_a_newer_version_takes_the_place_of_one_that_never_became_whole(following):
    following.work(work(0))
    following.chunk(chunk(1, 0, 8.0))
    for index in (0, 1):
        following.chunk(chunk(3, index, 9.0))
    following.work(work(3))
    np.testing.assert_array_equal(following.parameters(STEP), 9.0)


def test_waiting_is_no_task(following):
    assert following.work(work(0, WAIT, ())) is None


def whole(following, version, value):
    for index in (0, 1):
        following.chunk(chunk(version, index, value))
    return following.work(work(version))


def test_what_is_lent_stays_as_it_is_however_far_the_server_has_gone(following):
    following.work(work(0))
    lent = following.lend(STEP)
    for version in range(1, 6):
        assert whole(following, version, version).version == version
        np.testing.assert_array_equal(lent, 7.0)
        np.testing.assert_array_equal(following.parameters(STEP), version)
    following.chunk(chunk(6, 0, 6.0))
    following.give_back()
    np.testing.assert_array_equal(following.lend(STEP), 5.0)


def test_two_arrays_are_enough_while_computations_keep_up(following):
    seen = set()
    for version in range(5):
        whole(following, version, version)
        seen.add(id(following.lend(STEP)))
        following.chunk(chunk(version + 1, 0, 0.0))
        following.give_back()
    assert len(seen) == 2


def test_three_arrays_are_enough_for_computations_that_never_keep_up(following):
    following.work(work(0))
    seen = []  # the arrays themselves, so that none takes the place of another in memory
    for version in range(0, 30, 3):
        seen.append(following.lend(STEP))
        for newer in (1, 2, 3):
            whole(following, version + newer, 0.0)
            seen.append(following.parameters(STEP))
        following.give_back()
    assert len(set(map(id, seen))) <= 3


def test_a_newcomer_has_no_version(following):
    following.work(work(0))
    following.chunk(chunk(1, 0, 8.0))
    following.restart()
    with pytest.raises(ProtocolError, match="version 0 is not whole: have 0 of 2 chunks"):
        following.work(work(0))


# Parameters that travel as bfloat16.

EVALUATE = training_pb2.WORK_KIND_EVALUATE
MASTER = 1.0 + 2**-10  # has more digits than bfloat16


def rounded(version, index):
    size = 4 if index == 0 else 2
    return ParameterChunk(1, version, index, bfloat16.pack(np.ones(size, np.float32)).tobytes())


@pytest.fixture
def rounding():
    spec = read_spec(to_dict(SPEC) | {"wire_dtype": "bfloat16"})
    made = Following(spec, 4)
    for index in (0, 1):
        made.chunk(rounded(3, index))
    return made


def test_steps_are_computed_from_what_is_rounded_and_evaluations_from_the_master(rounding):
    assert rounding.work(work(3)).kind == STEP
    np.testing.assert_array_equal(rounding.parameters(STEP), 1.0)
    for index in (1, 0):
        rounding.chunk(chunk(3, index, MASTER))
    assert rounding.work(work(3, EVALUATE)).kind == EVALUATE
    np.testing.assert_array_equal(rounding.parameters(EVALUATE), np.float32(MASTER))
    rounding.work(work(3))
    np.testing.assert_array_equal(rounding.parameters(STEP), 1.0)


@pytest.mark.parametrize("chunks", [[], [chunk(3, 0, MASTER)], [chunk(2, 0, MASTER), chunk(2, 1, MASTER)]])
def test_an_evaluation_without_a_whole_master_is_an_error(rounding, chunks):
    for one in chunks:
        rounding.chunk(one)
    with pytest.raises(ProtocolError, match="version 3 is not whole"):
        rounding.work(work(3, EVALUATE))


def test_a_master_does_not_make_up_for_what_is_rounded(rounding):
    for index in (0, 1):
        rounding.chunk(chunk(4, index, MASTER))
    with pytest.raises(ProtocolError, match="version 4 is not whole: have 2 of 2 chunks of version 3"):
        rounding.work(work(4, EVALUATE))


def test_a_master_that_is_lent_stays_as_it_is(rounding):
    for version in (3, 5):
        for index in (0, 1):
            rounding.chunk(rounded(version, index))
            rounding.chunk(chunk(version, index, MASTER + version))
        rounding.work(work(version, EVALUATE))
        if version == 3:
            lent = rounding.lend(EVALUATE)
    for index in (0, 1):
        rounding.chunk(chunk(7, index, 0.0))
    np.testing.assert_array_equal(lent, np.float32(MASTER + 3))
    rounding.give_back()
    np.testing.assert_array_equal(rounding.lend(EVALUATE), np.float32(MASTER + 5))


def test_a_newcomer_has_no_master(rounding):
    for index in (0, 1):
        rounding.chunk(chunk(3, index, MASTER))
    rounding.work(work(3, EVALUATE))
    rounding.restart()
    for index in (0, 1):
        rounding.chunk(rounded(3, index))
    with pytest.raises(ProtocolError, match="version 3 is not whole"):
        rounding.work(work(3, EVALUATE))


# The front of a version that comes in.

LAYERS = 3  # of 2 units; each has 6 elements, and a chunk 4


@pytest.fixture
def deep():
    layers = [{"units": 2, "activation": "relu"}] * (LAYERS - 1) + [{"units": 2}]
    made = Following(read_spec(to_dict(SPEC) | {"network": {"inputs": 2, "layers": layers}}), 4)
    come(made, 0, range(5))
    made.work(work(0))
    return made


def come(following, version, indices, value=1.0):
    for index in indices:
        following.chunk(ParameterChunk(1, version, index, np.full(2 if index == 4 else 4, value, np.float32).tobytes()))


def layers_of(front):
    return front and list(front.layers)


def test_the_front_is_told_layer_by_layer_until_all_are_there(deep):
    told = []
    for index in range(5):
        come(deep, 1, [index])
        told.append(layers_of(deep.front()))
    assert told == [None, [0], [1], None, None]
    assert deep.front() is None
    deep.work(work(1))
    assert deep.fronted


def test_the_front_is_where_the_version_will_be(deep):
    come(deep, 1, range(4), value=9.0)
    front = deep.front()
    assert layers_of(front) == [0, 1]
    np.testing.assert_array_equal(front.parameters[:12], 9.0)
    come(deep, 1, [4])
    deep.work(work(1))
    assert deep.lend(STEP) is front.parameters


def test_layers_behind_a_gap_do_not_count(deep):
    come(deep, 1, [1, 2, 3, 4])
    assert deep.front() is None
    come(deep, 1, [0])
    assert deep.front() is None, "it is whole"


def test_another_version_has_a_front_of_its_own(deep):
    come(deep, 1, [0, 1])
    assert layers_of(deep.front()) == [0]
    come(deep, 2, range(4))
    assert layers_of(deep.front()) == [0, 1]
    come(deep, 2, [4])
    deep.work(work(2))
    assert deep.fronted


def test_a_front_of_what_never_became_the_present_version_is_not_of_that(deep):
    come(deep, 1, [0, 1])
    deep.front()
    come(deep, 2, [4, 3, 2, 1, 0])
    deep.work(work(2))
    assert not deep.fronted


def test_what_comes_again_has_to_be_gone_through_again(deep):
    come(deep, 1, range(3))
    assert layers_of(deep.front()) == [0, 1]
    come(deep, 1, [0])
    assert layers_of(deep.front()) == [0, 1]
    come(deep, 1, [1, 3, 4])
    deep.work(work(1))
    assert not deep.fronted


def test_a_newcomers_version_has_a_front_of_its_own(deep):
    come(deep, 1, range(3))
    deep.front()
    deep.restart()
    assert deep.front() is None
    come(deep, 1, range(2))
    assert layers_of(deep.front()) == [0]


def test_a_front_before_the_first_version_is_one(deep):
    deep.restart()
    assert not Following(SPEC, 4).front()
    come(deep, 0, [0, 1])
    front = deep.front()
    assert isinstance(front, Front)


# Versions in shared memory.

SIZE = 6  # elements of a version


class Room:
    """Memory of the server for a version; `gone` once nobody refers to it any more."""

    def __init__(self, value):
        self._bytes = np.full(SIZE + 2, value, np.float32).view(np.uint8)  # some of it is not used
        self._gone = weakref.ref(self._bytes)

    def chunk(self, version, index, begin=0):
        """Return a chunk of the version that begins so many elements behind the room's beginning."""
        lo, num = (0, 4) if index == 0 else (4, 2)
        place = Reference(4 * (begin + lo), 4 * num)
        return ParameterChunk(1, version, index, self._bytes.data.toreadonly(), place)

    def forget(self):
        """Have only others refer to it."""
        self._bytes = None

    @property
    def gone(self):
        return self._gone() is None

    def has(self, parameters):
        return np.shares_memory(self._gone(), parameters)


def shared(following, version, value):
    """Have a version come in a room of its own, which the server has forgotten. Return the room."""
    room = Room(value)
    for index in (1, 0):
        following.chunk(room.chunk(version, index))
    room.forget()
    return room


@pytest.fixture
def sharing():
    made = Following(SPEC, 4)
    made.room = shared(made, 0, 7.0)
    made.work(work(0))
    return made


def test_a_version_in_shared_memory_is_used_there(sharing):
    lent = sharing.lend(STEP)
    assert sharing.room.has(lent)
    assert lent.shape == (SIZE,)
    np.testing.assert_array_equal(lent, 7.0)
    assert not lent.flags.writeable


def test_it_is_let_go_when_there_is_a_newer_one(sharing):
    newer = shared(sharing, 1, 8.0)
    assert not sharing.room.gone
    sharing.work(work(1))
    assert sharing.room.gone
    assert not newer.gone
    np.testing.assert_array_equal(sharing.lend(STEP), 8.0)


def test_it_is_not_let_go_while_it_is_computed_from(sharing):
    lent = sharing.lend(STEP)
    rooms = []
    for version in range(1, 5):
        rooms.append(shared(sharing, version, version))
        sharing.work(work(version))
        np.testing.assert_array_equal(lent, 7.0)
        assert [room.gone for room in rooms] == [True] * (version - 1) + [False], "a version between is let go at once"
    sharing.give_back()
    assert not sharing.room.gone
    del lent
    assert sharing.room.gone


def test_one_that_never_became_whole_is_let_go_when_another_begins(sharing):
    room = Room(8.0)
    sharing.chunk(room.chunk(1, 0))
    room.forget()
    assert not room.gone
    newer = Room(9.0)
    sharing.chunk(newer.chunk(2, 0))
    assert room.gone
    assert not sharing.room.gone


def test_a_newcomer_lets_all_go(sharing):
    whole = shared(sharing, 1, 8.0)
    sharing.restart()
    assert sharing.room.gone
    assert whole.gone
    for version in (0, 1):
        with pytest.raises(ProtocolError, match=f"version {version} is not whole: have 0 of 2 chunks"):
            sharing.work(work(version))
    shared(sharing, 1, 9.0)
    sharing.work(work(1))
    np.testing.assert_array_equal(sharing.lend(STEP), 9.0)


def test_a_newcomer_may_still_compute_from_what_it_had(sharing):
    lent = sharing.lend(STEP)
    sharing.restart()
    shared(sharing, 3, 9.0)
    sharing.work(work(3))
    np.testing.assert_array_equal(lent, 7.0)
    sharing.give_back()
    del lent
    assert sharing.room.gone
    np.testing.assert_array_equal(sharing.lend(STEP), 9.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("first_is_shared", [True, False])
def test_a_version_that_comes_in_part_through_the_stream_is_copied(sharing, order, first_is_shared):
    room = Room(8.0)
    for index, is_shared in zip(order, (first_is_shared, not first_is_shared), strict=True):
        sharing.chunk(room.chunk(1, index) if is_shared else chunk(1, index, 9.0))
    room.forget()
    assert room.gone
    sharing.work(work(1))
    expected = np.full(SIZE, 8.0)
    streamed = order[first_is_shared]
    expected[(slice(4), slice(4, 6))[streamed]] = 9.0
    np.testing.assert_array_equal(sharing.lend(STEP), expected)


def test_a_version_that_comes_in_two_rooms_is_copied(sharing):
    """As when the server has begun it anew."""
    first, second = Room(8.0), Room(9.0)
    sharing.chunk(first.chunk(1, 0))
    for index in (0, 1):
        sharing.chunk(second.chunk(1, index))
    sharing.work(work(1))
    lent = sharing.lend(STEP)
    np.testing.assert_array_equal(lent, 9.0)
    assert not first.has(lent)
    assert not second.has(lent)


def test_a_version_that_does_not_begin_where_its_room_does_is_copied(sharing):
    room = Room(8.0)
    for index in (0, 1):
        sharing.chunk(room.chunk(1, index, begin=1))
    sharing.work(work(1))
    lent = sharing.lend(STEP)
    np.testing.assert_array_equal(lent, 8.0)
    assert not room.has(lent)


def test_shared_memory_is_never_written_to(sharing):
    """The arrays that others are copied to are the worker's own."""
    for version in range(1, 6):
        room = shared(sharing, version, version)
        sharing.work(work(version))
        whole(sharing, version + 10, 0.0)
        assert room.gone


def test_what_is_rounded_or_the_master_of_it_is_copied_out_of_shared_memory(rounding):
    room = np.full(SIZE, MASTER, np.float32).view(np.uint8)
    gone = weakref.ref(room)
    for index, (lo, hi) in enumerate(((0, 16), (16, 24))):
        rounding.chunk(ParameterChunk(1, 3, index, room.data, Reference(lo, hi - lo)))
    packed = bfloat16.pack(np.full(SIZE, 2.0, np.float32)).view(np.uint8)
    for index, (lo, hi) in enumerate(((0, 8), (8, 12))):
        rounding.chunk(ParameterChunk(1, 4, index, packed.data, Reference(lo, hi - lo)))
    del room
    assert gone() is None
    rounding.chunk(rounded(3, 0))
    rounding.chunk(rounded(3, 1))
    rounding.work(work(3, EVALUATE))
    np.testing.assert_array_equal(rounding.parameters(EVALUATE), np.float32(MASTER))
    for index, (lo, hi) in enumerate(((0, 8), (8, 12))):
        rounding.chunk(ParameterChunk(1, 4, index, packed.data, Reference(lo, hi - lo)))
    rounding.work(work(4))
    np.testing.assert_array_equal(rounding.parameters(STEP), 2.0)


def test_the_front_of_a_version_in_shared_memory_is_there_from_the_first_chunk_on(deep):
    values = np.full(18, 2.0, np.float32)
    room = values.view(np.uint8).data.toreadonly()
    for index in range(2):
        deep.chunk(ParameterChunk(1, 1, index, room, Reference(16 * index, 16)))
    front = deep.front()
    assert layers_of(front) == [0]
    assert np.shares_memory(front.parameters, values)
    for index in (2, 3, 4):
        deep.chunk(ParameterChunk(1, 1, index, room, Reference(16 * index, 8 if index == 4 else 16)))
    deep.work(work(1))
    assert deep.fronted
    assert np.shares_memory(deep.lend(STEP), values)


def test_a_front_stays_good_when_the_rest_of_its_version_comes_through_the_stream(deep):
    values = np.full(18, 2.0, np.float32)
    room = values.view(np.uint8).data.toreadonly()
    for index in range(2):
        deep.chunk(ParameterChunk(1, 1, index, room, Reference(16 * index, 16)))
    assert layers_of(deep.front()) == [0]
    come(deep, 1, [2, 3], value=2.0)
    front = deep.front()
    assert layers_of(front) == [1]
    np.testing.assert_array_equal(front.parameters[:16], 2.0)
    assert not np.shares_memory(front.parameters, values)
    come(deep, 1, [4], value=2.0)
    deep.work(work(1))
    assert deep.fronted
    np.testing.assert_array_equal(deep.lend(STEP), 2.0)
