"""The session by its events and effects alone."""

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep_proto.codec import ParameterChunk, Reference
from lockstep_proto.spec import read_spec, to_dict
from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_worker.errors import DataError
from lockstep_worker.session import ANSWER_S, REDIAL_S, Compute, Dial, End, Joined, Prepare, Send, Session

SPEC = read_spec({"network": {"inputs": 2, "layers": [{"units": 2}]}, "loss": "norm", "batch_size": 8, "epochs": 1})
HELLO = training_pb2.WorkerHello(job_id="job", worker_id="w")
LEASE_S = 2.0
PERIOD_S = 0.5
STEP, EVALUATE = training_pb2.WORK_KIND_STEP, training_pb2.WORK_KIND_EVALUATE
EXAMINE, WAIT = training_pb2.WORK_KIND_EXAMINE, training_pb2.WORK_KIND_WAIT
HEARTBEAT = training_pb2.ServerMessage(heartbeat=training_pb2.Heartbeat())


def welcome(chunk_elements=4, spec=SPEC):
    told = training_pb2.Welcome(attempt=1, spec=spec, chunk_elements=chunk_elements, lease_s=LEASE_S)
    return training_pb2.ServerMessage(welcome=told)


def chunk(version, index):
    return ParameterChunk(1, version, index, np.full(4 if index == 0 else 2, version, np.float32).tobytes())


def work(version, kind=STEP, lo=0, hi=8):
    ranges = [] if kind == WAIT else [training_pb2.ShardRange(lo=lo, hi=hi)]
    return training_pb2.ServerMessage(work=training_pb2.Work(attempt=1, version=version, kind=kind, ranges=ranges))


FORGET = training_pb2.ServerMessage(forget=training_pb2.Forget())


def goodbye(reason, *, refused=False):
    return training_pb2.ServerMessage(goodbye=training_pb2.Goodbye(reason=reason, refused=refused))


def sent(effects):
    """Which kinds of messages are sent."""
    messages = [training_pb2.WorkerMessage.FromString(e.message) for e in effects if isinstance(e, Send)]
    return [message.WhichOneof("kind") for message in messages]


class Driven:
    """A session, and a clock for it."""

    def __init__(self):
        self.session = Session(HELLO)
        self.now = 100.0

    def opened(self):
        return self.session.opened(self.now)

    def hear(self, *messages):
        return [effect for message in messages for effect in self.session.received(message, self.now)]

    def version(self, version):
        """All of one version, without what is to be done with it."""
        return self.hear(chunk(version, 0), chunk(version, 1))

    def lost(self, reason="it broke"):
        return self.session.lost(reason, self.now)

    def ticks(self, seconds, *, heard=False):
        effects = []
        for _ in range(round(seconds / PERIOD_S)):
            self.now += PERIOD_S
            if heard:
                effects += self.hear(HEARTBEAT)
            effects += self.session.tick(self.now)
        return effects


@pytest.fixture
def driven():
    return Driven()


@pytest.fixture
def welcomed(driven):
    driven.opened()
    driven.hear(welcome())
    return driven


@pytest.fixture
def computing(welcomed):
    """Computes step 0."""
    welcomed.version(0)
    (welcomed.first,) = welcomed.hear(work(0))
    return welcomed


# Work


def test_a_stream_begins_with_a_hello(driven):
    (hello,) = driven.opened()
    assert training_pb2.WorkerMessage.FromString(hello.message).hello == HELLO


def test_a_whole_version_and_its_work_are_computed(welcomed):
    assert welcomed.version(3) == []
    (computation,) = welcomed.hear(work(3, lo=2, hi=4))
    assert isinstance(computation, Compute)
    assert (computation.task.version, computation.task.kind, computation.task.ranges) == (3, STEP, ((2, 4),))
    assert (computation.job.spec, computation.job.chunk_elements) == (SPEC, 4)
    np.testing.assert_array_equal(computation.parameters, 3.0)
    assert not welcomed.session.superseded(computation)


def test_further_shards_of_the_same_step_wait_for_the_first(computing):
    assert computing.hear(work(0, lo=5, hi=6)) == []
    assert not computing.session.superseded(computing.first)
    (second,) = computing.session.computed()
    assert second.task.ranges == ((5, 6),)
    assert computing.session.computed() == ()


def test_the_next_version_is_computed_as_soon_as_it_is_there_if_the_last_one_is_done(computing):
    computing.version(1)
    assert computing.session.computed() == ()
    (second,) = computing.hear(work(1))
    np.testing.assert_array_equal(second.parameters, 1.0)


def test_newer_work_supersedes_what_is_computed_and_what_waits(computing):
    computing.hear(work(0, lo=5, hi=6))
    computing.version(1)
    assert computing.hear(work(1)) == []
    assert computing.session.superseded(computing.first)
    (second,) = computing.session.computed()
    assert (second.task.version, second.task.ranges) == (1, ((0, 8),))
    assert computing.session.computed() == ()


def test_who_is_told_to_forget_drops_its_work_and_all_versions(computing):
    computing.hear(work(0, lo=5, hi=6))
    computing.version(1)
    assert computing.hear(FORGET) == []
    assert computing.session.superseded(computing.first)
    assert computing.session.computed() == ()
    (dial,) = computing.hear(work(1))
    assert "version 1 is not whole: have 0 of 2 chunks" in dial.reason


def test_who_was_told_to_forget_goes_on_with_a_version_that_comes_whole(computing):
    computing.hear(FORGET)
    computing.version(0)
    assert computing.hear(work(0)) == []
    (again,) = computing.session.computed()
    assert not computing.session.superseded(again)
    np.testing.assert_array_equal(again.parameters, 0.0)


@pytest.mark.parametrize("ends_by", ["lost", "goodbye", "forget", "leave"])
def test_memory_of_the_server_is_let_go_with_the_stream_that_lent_it(welcomed, ends_by):
    rooms = [np.full(6, version, np.float32).view(np.uint8) for version in (0, 1)]
    for version, room in enumerate(rooms):
        places = [Reference(0, 16), Reference(16, 8)] if version == 0 else [Reference(0, 16)]
        welcomed.hear(*(ParameterChunk(1, version, i, room.data, place) for i, place in enumerate(places)))
        if version == 0:
            (first,) = welcomed.hear(work(0))
            assert np.may_share_memory(first.parameters, room)
    known = [weakref.ref(room) for room in rooms]
    del rooms, room
    assert all(room() is not None for room in known)
    last_words = {"goodbye": goodbye("the job has ended"), "forget": FORGET}
    if ends_by == "lost":
        welcomed.lost()
    elif ends_by == "leave":
        welcomed.session.leave()
    else:
        welcomed.hear(last_words[ends_by])
    assert known[1]() is None
    assert known[0]() is not None, "it is still computed from"
    del first
    welcomed.session.computed()
    assert known[0]() is None


@pytest.mark.parametrize("kind", [EVALUATE, EXAMINE, WAIT])
def test_another_kind_of_work_at_the_same_version_supersedes(computing, kind):
    assert computing.hear(work(0, kind)) == []
    assert computing.session.superseded(computing.first)
    assert [effect.task.kind for effect in computing.session.computed()] == ([] if kind == WAIT else [kind])


def test_versions_come_and_go_under_a_long_computation_that_keeps_its_own(computing):
    for version in range(1, 6):
        computing.version(version)
        assert computing.hear(work(version)) == []
        np.testing.assert_array_equal(computing.first.parameters, 0.0)
    (newest,) = computing.session.computed()
    assert newest.task.version == 5
    np.testing.assert_array_equal(newest.parameters, 5.0)


# What is begun before its version is whole


@pytest.fixture
def deep(driven):
    """Has computed step 0 of a network whose first layer has two chunks, and the second one."""
    driven.opened()
    layers = [{"units": 2, "activation": "relu"}, {"units": 1}]
    driven.hear(welcome(3, read_spec(to_dict(SPEC) | {"network": {"inputs": 2, "layers": layers}})))
    come(driven, 0, [2, 1, 0])
    (driven.first,) = driven.hear(work(0))
    driven.session.computed()
    return driven


def come(driven, version, indices):
    return driven.hear(
        *(ParameterChunk(1, version, index, np.full(3, version, np.float32).tobytes()) for index in indices)
    )


def test_a_step_is_prepared_as_soon_as_the_first_layer_of_its_version_is_there(deep):
    assert come(deep, 1, [0]) == []
    (preparation,) = come(deep, 1, [1])
    assert isinstance(preparation, Prepare)
    assert preparation.job == deep.first.job
    assert preparation.front.layers == range(1)
    assert deep.session.computed() == ()
    assert come(deep, 1, [2]) == []
    (computation,) = deep.hear(work(1))
    assert computation.prepared
    assert computation.parameters is preparation.front.parameters


def test_work_waits_for_what_is_prepared(deep):
    come(deep, 1, [0, 1])
    assert come(deep, 1, [2]) == deep.hear(work(1)) == []
    (computation,) = deep.session.computed()
    assert isinstance(computation, Compute)
    assert computation.prepared


def test_nothing_is_prepared_while_something_is_computed(deep):
    (again,) = deep.hear(work(0))
    assert come(deep, 1, [0, 1]) == []
    (preparation,) = deep.session.computed()
    assert isinstance(preparation, Prepare)
    assert not again.prepared


def test_what_was_prepared_of_another_version_is_not_of_the_one_computed_from(deep):
    come(deep, 1, [0, 1])
    deep.session.computed()
    come(deep, 2, [2, 1, 0])
    (computation,) = deep.hear(work(2))
    assert not computation.prepared


def test_a_preparation_goes_on_beside_a_stream_that_breaks(deep):
    come(deep, 1, [0, 1])
    assert isinstance(deep.lost()[0], Dial)
    deep.opened()
    deep.hear(welcome(3, deep.first.job.spec))
    assert come(deep, 1, [0, 1]) == []
    (preparation,) = deep.session.computed()
    assert preparation.front.layers == range(1), "from the first layer on: another stream's parameters"


@pytest.mark.parametrize("opened", [False, True])
def test_nothing_is_prepared_without_a_server(deep, opened):
    deep.hear(work(0))
    come(deep, 1, [0, 1])
    deep.lost()
    if opened:
        deep.opened()
    assert deep.session.computed() == ()


def test_a_preparation_that_fails_ends_the_worker_as_a_computation_does(deep):
    come(deep, 1, [0, 1])
    told, end = deep.session.failed(MemoryError("no room"))
    assert sent([told]) == ["failure"]
    assert end == End("cannot compute: MemoryError: no room", failed=True)
    assert deep.session.computed() == ()


def test_preparing_is_of_no_use_by_itself(welcomed):
    welcomed.version(0)
    assert welcomed.lost() == [Dial(REDIAL_S[0], "it broke")]
    welcomed.opened()
    assert welcomed.lost() == [Dial(REDIAL_S[1], "it broke", first=False)]


# Silence


def test_heartbeats_are_sent_once_welcomed(driven):
    driven.opened()
    assert driven.ticks(1.0) == []
    assert driven.hear(welcome()) == [Joined()]
    assert driven.session.period_s == PERIOD_S
    assert sent(driven.ticks(1.0, heard=True)) == ["heartbeat", "heartbeat"]


def test_a_server_that_sends_heartbeats_is_not_left(welcomed):
    assert not any(isinstance(effect, Dial) for effect in welcomed.ticks(60.0, heard=True))


def test_a_server_that_is_silent_for_a_lease_is_dialled_again(welcomed):
    assert sent(welcomed.ticks(LEASE_S)) == ["heartbeat"] * 4
    assert welcomed.ticks(PERIOD_S) == [Dial(REDIAL_S[0], "heard nothing for 2 s")]
    assert welcomed.ticks(60.0) == [], "there is no stream"


def test_a_chunk_is_a_sign_of_life(welcomed):
    welcomed.ticks(LEASE_S)
    welcomed.hear(chunk(0, 0))
    assert sent(welcomed.ticks(LEASE_S)) == ["heartbeat"] * 4


def test_time_in_which_the_process_stood_still_is_no_silence(welcomed):
    welcomed.ticks(LEASE_S - PERIOD_S)
    welcomed.now += 3600.0
    assert sent(welcomed.session.tick(welcomed.now)) == ["heartbeat"]
    assert sent(welcomed.ticks(PERIOD_S, heard=True)) == ["heartbeat"]


def test_a_server_that_does_not_answer_a_hello_is_dialled_again(driven):
    driven.opened()
    assert driven.ticks(ANSWER_S) == []
    assert driven.ticks(PERIOD_S) == [Dial(REDIAL_S[0], "heard nothing for 10 s")]


# Streams that end


def test_a_rewound_job_is_dialled_quickly_and_the_worker_is_a_newcomer_there(computing):
    computing.session.computed()
    assert computing.lost() == [Dial(0.1, "it broke")]
    computing.opened()
    computing.hear(welcome())
    assert computing.hear(work(0)) == [Dial(0.2, f"the server sent what cannot be: {not_whole(0, 0, -1)}", first=False)]


def not_whole(version, have, incoming):
    return f"version {version} is not whole: have {have} of 2 chunks of version {incoming}"


def test_a_server_that_is_away_is_dialled_more_and_more_rarely(driven):
    waits = []
    for _ in range(8):
        driven.opened()
        waits += [effect.wait_s for effect in driven.lost()]
    assert waits == [*REDIAL_S, 2.0, 2.0, 2.0]


def test_a_stream_that_lasted_or_on_which_something_was_computed_ends_the_growth_of_the_wait(driven):
    def fail(times):
        for _ in range(times):
            driven.opened()
            (dial,) = driven.lost()
        return dial.wait_s

    assert fail(4) == 1.0
    driven.opened()
    driven.hear(welcome())
    driven.ticks(2.0, heard=True)
    assert driven.lost()[0].wait_s == 0.1
    assert fail(4) == 2.0
    driven.opened()
    driven.hear(welcome())
    driven.version(0)
    driven.hear(work(0))
    driven.session.computed()
    assert driven.lost()[0].wait_s == 0.1


def test_a_stream_that_always_fails_after_its_welcome_is_no_fast_loop(driven):
    waits = []
    for _ in range(6):
        driven.opened()
        driven.hear(welcome())
        driven.version(0)
        waits += [effect.wait_s for effect in driven.hear(work(1))]
    assert waits == [*REDIAL_S, 2.0]


@pytest.mark.parametrize("message", [chunk(0, 0), work(0), FORGET])
def test_what_comes_before_a_welcome_breaks_the_stream(driven, message):
    driven.opened()
    assert driven.hear(message) == [
        Dial(REDIAL_S[0], "the server sent what cannot be: parameters or work before a welcome")
    ]


def test_a_computation_of_a_lost_stream_is_superseded_and_its_parameters_stay_until_it_is_done(computing):
    computing.lost()
    assert computing.session.superseded(computing.first)
    computing.opened()
    computing.hear(welcome())
    for version in (4, 5):
        computing.version(version)
        assert computing.hear(work(version)) == []
    np.testing.assert_array_equal(computing.first.parameters, 0.0)
    (next_one,) = computing.session.computed()
    assert next_one.task.version == 5
    assert next_one.job is computing.first.job, "so that its engine can be kept"


def test_a_server_that_cuts_chunks_differently_after_its_restart_is_followed(computing):
    computing.lost()
    computing.opened()
    computing.hear(welcome(chunk_elements=6))
    computing.hear(ParameterChunk(1, 2, 0, np.full(6, 2.0, np.float32).tobytes()))
    computing.hear(work(2))
    (next_one,) = computing.session.computed()
    assert next_one.job.chunk_elements == 6
    np.testing.assert_array_equal(next_one.parameters, 2.0)


# Ends


@pytest.mark.parametrize("refused", [True, False])
def test_a_goodbye_ends_it(computing, refused):
    assert computing.hear(goodbye("numerics differ", refused=refused)) == [End("numerics differ", refused=refused)]
    assert computing.session.superseded(computing.first)


def test_one_who_is_to_leave_says_so(computing):
    effects = computing.session.leave()
    assert sent(effects) == ["leaving"]
    assert effects[1:] == [End("told to leave")]
    assert computing.session.superseded(computing.first)


def test_one_who_is_to_leave_between_two_streams_just_ends(computing):
    computing.lost()
    assert computing.session.leave() == [End("told to leave")]


@pytest.mark.parametrize(
    ("error", "words", "error_type"),
    [
        (MemoryError("no room"), "MemoryError: no room", service_pb2.ERROR_TYPE_INTERNAL),
        (
            DataError("d.csv is gone", service_pb2.ERROR_TYPE_DATA_UNAVAILABLE),
            "d.csv is gone",
            service_pb2.ERROR_TYPE_DATA_UNAVAILABLE,
        ),
    ],
)
def test_a_computation_that_fails_is_told_and_ends_the_worker(computing, error, words, error_type):
    told, end = computing.session.failed(error)
    assert training_pb2.WorkerMessage.FromString(told.message).failure == training_pb2.WorkerFailure(
        message=f"a worker cannot compute step 0: {words}", error_type=error_type
    )
    assert end == End(f"cannot compute step 0: {words}", failed=True)


def test_a_failure_between_two_streams_is_not_sent(computing):
    computing.lost()
    assert computing.session.failed(MemoryError("no room")) == [
        End("cannot compute step 0: MemoryError: no room", failed=True)
    ]


def test_nothing_follows_an_end(computing):
    computing.session.leave()
    assert computing.opened() == ()
    assert computing.hear(welcome(), chunk(1, 0), work(0), goodbye("again")) == []
    assert computing.session.computed() == ()
    assert computing.session.failed(MemoryError()) == ()
    assert computing.session.leave() == ()
    assert computing.lost() == ()
    assert computing.ticks(60.0) == []


# Whatever happens

EVENTS = st.lists(
    st.sampled_from(
        ["version", "skip", "work", "more", "evaluate", "wait", "forget", "computed", "lost", "ticks", "silence"]
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(EVENTS)
def test_one_computation_at_a_time_always_from_the_newest_work_and_from_whole_parameters(events):
    driven = Driven()
    computation, version, open_now = None, 0, False
    newest = None  # version and kind of the newest work
    for event in events:
        effects = []
        if not open_now:
            driven.opened()
            effects, open_now, newest = driven.hear(welcome(), chunk(version, 0), chunk(version, 1)), True, None
        if event in ("version", "skip"):
            version += 1 if event == "version" else 3
            effects += driven.version(version)
            effects += driven.hear(work(version))
            newest = (version, STEP)
        elif event in ("work", "more", "evaluate", "wait"):
            kind = {"evaluate": EVALUATE, "wait": WAIT}.get(event, STEP)
            effects += driven.hear(work(version, kind))
            newest = (version, kind)
        elif event == "forget":
            effects += driven.hear(FORGET)
            effects += driven.version(version)
            newest = None
        elif event == "computed" and computation is not None:
            computation = None
            effects += driven.session.computed()
        elif event == "lost":
            effects += driven.lost()
        elif event in ("ticks", "silence"):
            effects += driven.ticks(3.0, heard=event == "ticks")
        for effect in effects:
            if isinstance(effect, Compute):
                assert computation is None
                computation = effect
                assert (effect.task.version, effect.task.kind) == newest
            elif isinstance(effect, Dial):
                open_now, newest = False, None
        if computation is not None:
            np.testing.assert_array_equal(computation.parameters, computation.task.version)
            current = open_now and newest == (computation.task.version, computation.task.kind)
            assert current or driven.session.superseded(computation)
