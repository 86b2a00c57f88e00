import numpy as np
import pytest

from lockstep_proto import bfloat16
from lockstep_proto.codec import ParameterChunk
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
