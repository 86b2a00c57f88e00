import numpy as np
import pytest

from lockstep_proto.codec import ParameterChunk
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import training_pb2
from lockstep_worker.following import Following, ProtocolError, Task

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
            seen.append(following.parameters)
        following.give_back()
    assert len(set(map(id, seen))) <= 3


def test_a_newcomer_has_no_version(following):
    following.work(work(0))
    following.chunk(chunk(1, 0, 8.0))
    following.restart()
    with pytest.raises(ProtocolError, match="version 0 is not whole: have 0 of 2 chunks"):
        following.work(work(0))
