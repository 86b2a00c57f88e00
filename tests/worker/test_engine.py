"""What a worker answers to a task. That its sums have the right bits is shown by the tests across houses."""

import sys
import weakref

import numpy as np
import pytest

from lockstep_proto import codec
from lockstep_proto.codec import NodeChunk
from lockstep_proto.layout import Layout
from lockstep_proto.spec import read_spec, to_dict
from lockstep_proto.v1 import training_pb2
from lockstep_worker import shares, stacking
from lockstep_worker.engine import Engine
from lockstep_worker.following import Front, Task
from lockstep_worker.shard import Shard

SPEC = read_spec(
    {
        "network": {"inputs": 1, "layers": [{"units": 1, "activation": "identity"}, {"units": 1}]},
        "loss": "squared_error",
        "batch_size": "full",
        "epochs": 1,
        "shards": 5,
    }
)
LAYOUT = Layout.from_spec(SPEC)
STEP, EXAMINE = training_pb2.WORK_KIND_STEP, training_pb2.WORK_KIND_EXAMINE


def task(kind, *ranges):
    return Task(attempt=2, version=7, kind=kind, epoch=0, step_in_epoch=0, ranges=ranges)


def shard(x, y):
    return Shard(np.array([[x]], np.float32), np.array([[y]], np.float32))


def test_the_parameters_are_let_go_when_an_answer_has_been_given_where_they_are_not_the_workers_own():
    """They lie in the server's memory, which makes no other version of it while somebody refers to it."""
    asked = Asked({}, num_cpus=2)
    memory = np.array([1.0, 0.0, 1.0, 0.0], np.float32)
    parameters = np.frombuffer(memory.data.toreadonly(), np.float32)
    gone = weakref.ref(parameters)
    asked.engine.prepare(Front(parameters, range(1)))
    asked.engine.answer(task(STEP, (0, 5)), parameters, lambda message: None, lambda: False)
    del parameters
    assert gone() is None


class Asked:
    """An engine whose shards are all good but some, and which of them it computed."""

    def __init__(self, bad, num_cpus=1):
        self.fetched = []
        good = shard(1.0, 0.5)

        def fetch(i):
            self.fetched.append(i)
            return bad.get(i, good)

        self.engine = Engine(SPEC, 2, training=fetch, validation=fetch, num_cpus=num_cpus)

    def answer(self, what, w2=1.0, w3=1.0, superseded=lambda: False):
        parameters = np.array([w2, 0.0, w3, 0.0], np.float32)
        sent = []
        self.engine.answer(what, parameters, sent.append, superseded)
        return [codec.decode_worker_message(message) for message in sent]


def finding(shard=None, layer=0, ranges=((0, 5),)):
    parts = [training_pb2.ShardRange(lo=lo, hi=hi) for lo, hi in ranges]
    found = training_pb2.Finding(attempt=2, step=7, ranges=parts, shard=shard, layer=layer)
    return [training_pb2.WorkerMessage(finding=found)]


def test_a_step_is_answered_by_chunks_of_its_top_nodes():
    chunks = Asked({}).answer(task(STEP, (0, 4), (4, 5)))
    assert all(isinstance(chunk, NodeChunk) for chunk in chunks)
    assert {(chunk.node, chunk.chunk_index) for chunk in chunks} == {(n, i) for n in ((0, 4), (4, 5)) for i in (0, 1)}
    assert {(chunk.attempt, chunk.step) for chunk in chunks} == {(2, 7)}


def test_an_examination_of_finite_shards_finds_none():
    asked = Asked({})
    assert asked.answer(task(EXAMINE, (0, 2), (4, 5))) == finding(ranges=((0, 2), (4, 5)))
    assert asked.fetched == [0, 1, 4]


# with x = 1: δ^3 = w3 w2 − y, ΔW^3 = w2 δ^3, δ^2 = w3 δ^3 = ΔW^2, q = δ^3² / 2
NAN, OUTPUT, LOSS, FIRST = shard(np.nan, 0.0), shard(1e25, 0.0), shard(1.0, 1e25), shard(1.0, 1e10)


@pytest.mark.parametrize(
    ("bad", "weights", "layer"),
    [
        pytest.param(NAN, (1.0, 1.0), 3, id="everything: the last layer"),
        pytest.param(OUTPUT, (1.0, 1.0), 3, id="the gradients and the loss: the last layer"),
        pytest.param(FIRST, (1.0, 1e30), 2, id="only what goes back through a large weight"),
        pytest.param(LOSS, (1.0, 1.0), 0, id="the loss alone"),
    ],
)
@pytest.mark.parametrize("num_cpus", [1, 2])
def test_an_examination_names_the_first_shard_and_its_first_layer_of_the_backward_pass(bad, weights, layer, num_cpus):
    w2, w3 = weights
    good = shard(0.0, 0.0)
    asked = Asked({0: good, 1: good, 2: good, 3: bad, 4: NAN}, num_cpus)
    assert asked.answer(task(EXAMINE, (0, 5)), w2, w3) == finding(3, layer)


def test_shards_after_the_first_bad_one_are_not_computed():
    asked = Asked({1: NAN})
    assert asked.answer(task(EXAMINE, (3, 5), (0, 3))) == finding(1, 3, ((3, 5), (0, 3)))
    assert asked.fetched == [0, 1]


def test_an_examination_that_is_superseded_is_left_off_between_shards_and_not_answered():
    asked = Asked({0: NAN})
    assert asked.answer(task(EXAMINE, (0, 4)), superseded=lambda: bool(asked.fetched)) == []
    assert asked.fetched == [0]


def test_a_step_that_is_superseded_is_left_off_between_shards(monkeypatch):
    monkeypatch.setattr(stacking, "keeps_bits", lambda *_: False)
    asked, looks = Asked({0: NAN}), iter([False, True])
    assert asked.answer(task(STEP, (0, 4)), superseded=lambda: next(looks)) == []
    assert next(looks, None) is None, "it was looked at twice"


def test_a_step_that_is_superseded_is_left_off_between_the_layers_of_stacked_shards(monkeypatch):
    monkeypatch.setattr(stacking, "keeps_bits", lambda *_: True)
    monkeypatch.setattr(sys.modules[__name__], "SPEC", read_spec(to_dict(SPEC) | {"batch_size": 5}))
    asked, looks = Asked({0: NAN}), iter([False, False, True])  # the node, layer 2, layer 3
    chunks = asked.answer(task(STEP, (0, 4)), superseded=lambda: next(looks, True))
    assert [chunk.chunk_index for chunk in chunks] == [0], "of layer 2 alone"


@pytest.mark.parametrize(("wire_dtype", "expected"), [("float32", finding()), ("bfloat16", finding(3, 3))])
def test_a_gradient_that_becomes_infinite_when_it_is_rounded_is_found(monkeypatch, wire_dtype, expected):
    """3.4e38 is a float32, and more than the largest bfloat16."""
    spec = read_spec(to_dict(SPEC) | {"loss": "absolute_error", "wire_dtype": wire_dtype})
    monkeypatch.setattr(sys.modules[__name__], "SPEC", spec)
    asked = Asked({3: shard(3.4e38, 0.5)})
    assert asked.answer(task(EXAMINE, (0, 5)), w2=1.0, w3=1.0) == expected


# What is begun before its parameters are whole.


class Ahead:
    """Steps of a network of three layers, of which some may be prepared."""

    def __init__(self, num_cpus=1, shards=2, **fields):
        layers = [{"units": 12, "activation": "gelu", "dropout": 0.3}, {"units": 8, "activation": "elu"}, {"units": 3}]
        fields |= {"batch_size": 16 * shards, "shards": shards, "loss": "squared_error", "epochs": 1}
        spec = read_spec({"network": {"inputs": 6, "layers": layers}} | fields)
        self.layout = Layout.from_spec(spec)
        self.ranges = ((0, shards),)

        def rows(i):
            random = np.random.default_rng(i)
            return Shard(*(random.normal(size=(64, n)).astype(self.layout.dtype) for n in (6, 3)))

        self.engine = Engine(spec, 100, training=rows, validation=rows, num_cpus=num_cpus)

    def parameters(self, version):
        random = np.random.default_rng(version)
        return random.normal(size=self.layout.num_parameters).astype(self.layout.dtype)

    def prepare(self, version, *fronts):
        """Nothing is there yet behind a front."""
        for lo, hi in fronts:
            parameters = self.parameters(version)
            parameters[self.layout.layer_slices[hi - 1].stop :] = np.nan
            self.engine.prepare(Front(parameters, range(lo, hi)))

    def answer(self, version, kind=STEP):
        sent = []
        what = Task(1, version, kind, 0, version, self.ranges)
        self.engine.answer(what, self.parameters(version), sent.append, lambda: False)
        decoded = map(codec.decode_worker_message, sent)
        return {(chunk.node, chunk.chunk_index): (bytes(chunk.data), chunk.sums) for chunk in decoded}


def products(monkeypatch):
    """The shapes of the products from here on, as they are made."""
    product, shapes = np.matmul, []

    def counted(a, b, out):
        shapes.append((a.shape, b.shape))
        return product(a, b, out=out)

    monkeypatch.setattr(np, "matmul", counted)
    return shapes


FRONTS = [[(0, 1)], [(0, 2)], [(0, 1), (1, 2)]]


@pytest.mark.parametrize("fronts", FRONTS)
@pytest.mark.parametrize("num_cpus", [1, 2])
@pytest.mark.parametrize(
    "fields", [{}, {"dtype": "float64"}, {"wire_dtype": "bfloat16"}, {"shards": 1}, {"shards": 5, "batch_size": 75}]
)
def test_a_step_that_was_prepared_has_the_same_bits(fronts, num_cpus, fields):
    prepared = Ahead(num_cpus, **fields)
    prepared.answer(0)
    for version in (1, 2):
        prepared.prepare(version, *fronts)
        assert prepared.answer(version) == Ahead(**fields).answer(version)


def test_layers_that_were_gone_through_are_not_again(monkeypatch):
    ahead = Ahead()
    ahead.answer(0)
    shapes = products(monkeypatch)
    ahead.prepare(1, (0, 1), (1, 2))
    forward = [((32, 6), (6, 12)), ((32, 12), (12, 8))]
    assert shapes == forward
    ahead.answer(1)
    assert [shapes.count(shape) for shape in forward] == [1, 1]


def test_what_was_prepared_of_another_version_is_forgotten():
    ahead = Ahead()
    ahead.answer(0)
    ahead.prepare(5, (0, 2))
    ahead.engine.forget()
    assert ahead.answer(1) == Ahead().answer(1)


def test_a_front_that_follows_on_one_that_nobody_went_through_is_left():
    ahead = Ahead()
    ahead.answer(0)
    ahead.prepare(1, (1, 2))
    assert ahead.answer(1) == Ahead().answer(1)


def test_other_work_in_between_undoes_what_was_prepared():
    ahead = Ahead()
    ahead.answer(0)
    ahead.prepare(1, (0, 2))
    ahead.answer(1, training_pb2.WORK_KIND_EVALUATE)
    assert ahead.answer(1) == Ahead().answer(1)


@pytest.mark.filterwarnings("error")
def test_what_overflows_on_the_way_is_the_servers_to_judge():
    ahead = Ahead()
    ahead.answer(0)
    largest = np.finfo(ahead.layout.dtype).max
    parameters = np.full(ahead.layout.num_parameters, largest, ahead.layout.dtype)
    ahead.engine.prepare(Front(parameters, range(2)))


@pytest.fixture
def threads_for_small_steps(monkeypatch):
    shares.parts.cache_clear()
    monkeypatch.setattr(shares, "SMALL_MULTIPLICATIONS", 0)
    yield
    shares.parts.cache_clear()


@pytest.mark.usefixtures("threads_for_small_steps")
def test_threads_that_have_no_part_any_more_prepare_nothing(monkeypatch):
    ahead = Ahead(num_cpus=2)
    ahead.answer(0)
    ahead.ranges = ((0, 1),)
    ahead.answer(1)
    shapes = products(monkeypatch)
    ahead.prepare(2, (0, 1))
    assert shapes == [((16, 6), (6, 12))]


def test_before_the_first_step_there_is_nothing_to_prepare(monkeypatch):
    ahead, shapes = Ahead(), products(monkeypatch)
    ahead.prepare(0, (0, 1))
    assert shapes == []
