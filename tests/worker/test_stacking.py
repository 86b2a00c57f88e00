"""Stacked shards have the bits of shards one by one, and where they would not, they are not stacked."""

import numpy as np
import pytest

from lockstep_proto import bfloat16, codec, tree
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import training_pb2
from lockstep_worker import backprop, stacking
from lockstep_worker.backprop import Backprop
from lockstep_worker.batches import Batch
from lockstep_worker.engine import Engine
from lockstep_worker.following import Task
from lockstep_worker.network import Network
from lockstep_worker.shard import Shard

HIDDEN = ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "identity"]
OUTPUTS = [(output, loss) for output in ("identity", "softmax", "tanh") for loss in ("norm", "squared_error", "huber")]
OUTPUTS += [("identity", "absolute_error"), ("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy")]


@pytest.fixture(autouse=True)
def no_answers_kept():
    stacking._keeps_bits.cache_clear()
    yield
    stacking._keeps_bits.cache_clear()


class Case:
    """Shards of a small network, `rows` of each a step."""

    def __init__(self, shards=4, rows=48, *, hidden="tanh", output="softmax", loss="cross_entropy", p=0.0, **fields):
        labels, weight = fields.pop("labels", False), fields.pop("weight", False)
        layers = [{"units": 33, "activation": hidden, "dropout": p}, {"units": 7, "activation": output}]
        fields = {"network": {"inputs": 19, "layers": layers}, "loss": loss, "epochs": 1} | fields
        self.spec = read_spec(fields | {"batch_size": shards * rows, "shards": shards})
        self.num_shards = shards
        self.network = Network.from_spec(self.spec)
        self.rng = np.random.default_rng(shards * 100 + rows)
        self.flat = self.rng.normal(size=self.network.layout.num_parameters).astype(self.network.layout.dtype)
        self.rows = rows
        self.shards = [self._shard(labels, weight) for _ in range(shards)]

    def _shard(self, labels, weight):
        n, rng, dtype = 2 * self.rows, self.rng, self.flat.dtype
        y = rng.integers(0, 7, n) if labels else rng.uniform(size=(n, 7)).astype(dtype)
        return Shard(rng.normal(size=(n, 19)).astype(dtype), y, rng.uniform(0, 2, n) if weight else None)

    @property
    def rounds(self):
        return bfloat16.travels(self.spec)

    def batches(self):
        random = np.random.default_rng(1)
        orders = [random.permutation(2 * self.rows)[: self.rows] for _ in self.shards]
        return [Batch(shard, orders[i], 1, 5, i) for i, shard in enumerate(self.shards)]

    def one_by_one(self):
        """The value of the root, and its sums, with every shard computed by itself."""
        backprop, parameters = Backprop.from_spec(self.spec, self.network), self.network.layout.views(self.flat)

        def value(lo, hi):
            if hi - lo > 1:
                middle = tree.split(lo, hi)
                (a, a_sums), (b, b_sums) = value(lo, middle), value(middle, hi)
                return self.rounded(a + b), a_sums.plus(b_sums)
            out = np.full_like(self.flat, np.nan)
            sums = backprop.gradient(parameters, self.batches()[lo], out, lambda *_: None)
            return self.rounded(out), sums

        return value(0, self.num_shards)

    def rounded(self, values):
        if self.rounds:
            bfloat16.round_in_place(values)
        return values

    def stacked(self):
        out, parameters = np.full_like(self.flat, np.nan), self.network.layout.views(self.flat)
        backprop = Backprop.from_spec(self.spec, self.network)
        found = list(backprop.node(parameters, self.batches(), out, rounds=self.rounds))
        assert [layer for layer, _ in found] == [0, 1]
        assert found[0][1] == found[1][1]
        return out, found[0][1]

    def check(self):
        assert stacking.keeps_bits(self.network.layout.sizes, self.flat.dtype, self.num_shards, self.rows)
        (expected, expected_sums), (found, sums) = self.one_by_one(), self.stacked()
        assert found.tobytes() == expected.tobytes()
        assert sums == expected_sums

    def answer(self, num_cpus, **changes):
        """The root as an engine gives it, from a step of which the first rows in the epoch's order are the batch."""
        shards = self.shards.__getitem__
        engine = Engine(self.spec, 10_000, training=shards, validation=shards, num_cpus=num_cpus)
        task = Task(1, 0, training_pb2.WORK_KIND_STEP, 0, changes.get("step_in_epoch", 0), ((0, self.num_shards),))
        sent = []
        engine.answer(task, self.flat, sent.append, lambda: False)
        (chunk,) = map(codec.decode_worker_message, sent)
        return bytes(chunk.data), chunk.sums


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_every_hidden_activation_with_dropout_labels_and_sample_weights(hidden, dtype):
    Case(hidden=hidden, p=0.4, labels=True, weight=True, dtype=dtype).check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("output", "loss"), OUTPUTS)
def test_every_output_and_loss(output, loss, dtype):
    Case(output=output, loss=loss, dtype=dtype).check()


@pytest.mark.parametrize("shards", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("rows", [1, 5, 16, 32, 48, 61, 128])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_engine_has_the_bits_of_shards_one_by_one_for_any_shards_and_rows(monkeypatch, shards, rows, dtype):
    case = Case(shards, rows, weight=True, dtype=dtype)
    found = [case.answer(num_cpus) for num_cpus in (1, 2, 3)]
    monkeypatch.setattr(stacking, "keeps_bits", lambda *_: False)
    assert found == [case.answer(1)] * 3


@pytest.mark.parametrize("cached", [0, 2_000, 100_000])
@pytest.mark.parametrize("changes", [{}, {"wire_dtype": "bfloat16"}])
def test_values_are_added_and_rounded_alike_wherever_they_are_made(monkeypatch, cached, changes):
    monkeypatch.setattr(backprop, "CACHED_ELEMENTS", cached)
    Case(7, 48, p=0.2, **changes).check()


@pytest.mark.parametrize("num_cpus", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"wire_dtype": "bfloat16"}])
def test_where_stacked_products_have_other_bits_shards_are_computed_one_by_one(monkeypatch, num_cpus, changes):
    case = Case(4, 48, **changes)
    product, seen = np.matmul, []

    def other_bits(a, b, out):
        product(a, b, out=out)
        seen.append(len(a))
        if len(a) in (96, 192):  # rows of two or of four shards; no layer has so many units
            out *= 1.02
        return out

    expected = case.answer(num_cpus)
    stacking._keeps_bits.cache_clear()
    monkeypatch.setattr(np, "matmul", other_bits)
    assert not np.array_equal(case.stacked()[0], case.one_by_one()[0]), "the bits differ where they are stacked"
    assert case.answer(num_cpus) == expected
    assert 192 // num_cpus in seen, "it was tried"


@pytest.mark.parametrize("num_cpus", [1, 2, 3])
def test_shards_with_fewer_rows_are_not_stacked_with_others(monkeypatch, num_cpus):
    def answer():
        case = Case(5, 48)
        whole, short, none = case.shards[1], case.shards[2], case.shards[3]
        case.shards[2] = Shard(short.x[:17], short.y[:17])
        case.shards[3] = Shard(none.x[:0], none.y[:0])
        case.shards[1] = Shard(whole.x[:32], whole.y[:32])
        return case.answer(num_cpus)

    found = answer()
    monkeypatch.setattr(stacking, "keeps_bits", lambda *_: False)
    assert found == answer()


def test_functions_that_depend_on_the_place_of_an_element_are_found(monkeypatch):
    def odd(x):
        y = np.exp(x)
        y[-(y.size % 16) :] *= 1 + 1e-6
        return y

    monkeypatch.setattr(stacking, "_FUNCTIONS", (odd,))
    assert not stacking._functions_agree.__wrapped__(np.dtype(np.float32))
