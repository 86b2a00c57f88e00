"""Gradients against central finite differences in float64, for every pairing that the rules allow."""

import itertools

import numpy as np
import pytest

from lockstep_proto.spec import read_spec
from lockstep_worker import backprop
from lockstep_worker.backprop import Backprop
from lockstep_worker.bands import Bands
from lockstep_worker.batches import Batch
from lockstep_worker.losses import Loss
from lockstep_worker.metric import metric_from_spec
from lockstep_worker.network import Network
from lockstep_worker.shard import Shard

ACTIVATIONS = ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "identity"]
LOSSES = ["norm", "squared_error", "absolute_error", "huber"]
PAIRS = [(output, loss) for output in [*ACTIVATIONS, "softmax"] for loss in LOSSES]
PAIRS += [("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy")]
DEPTHS = [1, 2, 3, 4]
H = 1e-6


def spec_of(output, loss, depth=2, hidden="tanh", dropout=0.0, dtype="float64", units=3):
    layers = [{"units": 4 + i, "activation": hidden, "dropout": dropout} for i in range(depth - 1)]
    return read_spec(
        {
            "network": {"inputs": 5, "layers": [*layers, {"units": units, "activation": output}]},
            "loss": loss,
            "batch_size": 8,
            "epochs": 1,
            "dtype": dtype,
        }
    )


class Case:
    """A network with drawn parameters and rows."""

    def __init__(self, spec, num_rows=7, labels=False, weight=False, seed=0):
        rng = np.random.default_rng(seed)
        self.spec = spec
        self.network = Network.from_spec(spec)
        layout = self.network.layout
        self.flat = rng.normal(0, 0.6, layout.num_parameters).astype(layout.dtype)
        self.parameters = layout.views(self.flat)
        x = rng.normal(size=(num_rows, 5)).astype(layout.dtype)
        units = layout.sizes[-1]
        y = rng.integers(0, units, num_rows) if labels else rng.uniform(0, 1, (num_rows, units)).astype(layout.dtype)
        if spec.loss == 5 and not labels:
            y /= y.sum(axis=1, keepdims=True)
        self.shard = Shard(x, y, rng.uniform(0.1, 2, num_rows) if weight else None)
        self.batch = Batch(self.shard, np.arange(num_rows), seed=3, step=5, shard_index=2)
        self.backprop = Backprop.from_spec(spec, self.network)

    def gradient(self, batch=None):
        flat = np.full_like(self.flat, np.nan)
        order = []
        sums = self.backprop.gradient(self.parameters, batch or self.batch, flat, lambda i, s: order.append((i, s)))
        return flat, sums, order

    def loss(self):
        return self.gradient()[1].loss

    def differences(self):
        numeric = np.empty_like(self.flat)
        for i in range(self.flat.size):
            kept = self.flat[i]
            self.flat[i] = kept + H
            above = self.loss()
            self.flat[i] = kept - H
            below = self.loss()
            self.flat[i] = kept
            numeric[i] = (above - below) / (2 * H)
        return numeric


def check(case, tolerance=1e-6):
    analytic = case.gradient()[0]
    numeric = case.differences()
    assert np.abs(analytic - numeric).max() <= tolerance * max(1.0, np.abs(numeric).max())


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("output", "loss"), PAIRS)
def test_every_output_with_every_loss_it_may_have(output, loss, depth):
    check(Case(spec_of(output, loss, depth)))


@pytest.mark.parametrize("depth", DEPTHS[1:])
@pytest.mark.parametrize("hidden", ACTIVATIONS)
def test_every_hidden_activation(hidden, depth):
    check(Case(spec_of("identity", "squared_error", depth, hidden)))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("output", "loss"), [("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy")])
def test_the_fused_rule_equals_the_general_one(output, loss, depth):
    """δ^L = ŷ − y against ∂Q/∂ŷ taken through σ', written here from the losses' definitions."""

    def general(m, z, y, d, t):
        if loss == "cross_entropy":
            d[...] = -y / z
            return -(y * np.log(z)).sum(axis=1)
        d[...] = (z - y) / (z * (1 - z))
        return -(y * np.log(z) + (1 - y) * np.log(1 - z)).sum(axis=1)

    case = Case(spec_of(output, loss, depth))
    fused, sums, _ = case.gradient()
    case.backprop = Backprop(case.network, Loss(general), metric_from_spec(case.spec), Bands(case.network.layout))
    by_rule, general_sums, _ = case.gradient()
    np.testing.assert_allclose(fused, by_rule, rtol=1e-9, atol=1e-12)
    assert sums.loss == pytest.approx(general_sums.loss)


@pytest.mark.parametrize("distance", [1e-3, 1e-1])
def test_the_norm_loss_near_its_kink(distance):
    case = Case(spec_of("identity", "norm", 1), num_rows=1)
    case.shard.y[...] = case.network.predict(case.parameters, case.shard.x) + distance
    check(case, tolerance=1e-4)


def test_the_norm_loss_at_its_kink_has_gradient_zero():
    case = Case(spec_of("identity", "norm", 1), num_rows=2)
    case.shard.y[0] = case.network.predict(case.parameters, case.shard.x)[0]
    both, sums, _ = case.gradient()
    case.batch = Batch(case.shard, np.array([1]))
    alone, alone_sums, _ = case.gradient()
    np.testing.assert_allclose(both, alone, rtol=1e-12)
    assert sums.loss == pytest.approx(alone_sums.loss)


def test_class_labels_are_rows_of_one():
    case = Case(spec_of("softmax", "cross_entropy"), labels=True)
    by_label = case.gradient()[0]
    dense = np.eye(3)[case.shard.y]
    case.batch = Batch(Shard(case.shard.x, dense), case.batch.rows)
    np.testing.assert_array_equal(by_label, case.gradient()[0])


def test_sample_weights_count_as_copies_of_rows():
    case = Case(spec_of("softmax", "cross_entropy"), num_rows=4)
    copies = np.array([0, 0, 1, 3, 3, 3])
    expected, expected_sums, _ = case.gradient(Batch(case.shard, copies))
    weighted = Shard(case.shard.x, case.shard.y, np.array([2.0, 1.0, 0.0, 3.0]))
    actual, sums, _ = case.gradient(Batch(weighted, np.arange(4)))
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
    assert sums == pytest.approx(expected_sums)


def test_weighted_gradients_against_differences():
    check(Case(spec_of("softmax", "cross_entropy", 3), weight=True))


def test_dropout_gradients_against_differences():
    check(Case(spec_of("identity", "squared_error", 3, dropout=0.4)))


def test_dropout_is_keyed_by_its_place_and_keeps_the_mean():
    spec = spec_of("identity", "squared_error", 2, "identity", dropout=0.25)
    case = Case(spec, num_rows=20_000)
    first = case.gradient()
    np.testing.assert_array_equal(first[0], case.gradient()[0])
    for other in ({"step": 6}, {"shard_index": 1}, {"seed": 4}):
        key = {"seed": 3, "step": 5, "shard_index": 2} | other
        assert not np.array_equal(first[0], case.gradient(Batch(case.shard, case.batch.rows, **key))[0])


def test_kept_units_are_scaled_so_that_the_mean_stays():
    """With z² = 1, W³ = 0 and δ³ = 1 the gradient of W³ is the sum of what dropout lets through."""
    case = Case(spec_of("identity", "squared_error", 2, "identity", dropout=0.25), num_rows=20_000)
    (w2, b2), (w3, b3) = case.parameters
    for array, value in ((w2, 0.0), (b2, 1.0), (w3, 0.0), (b3, 1.0), (case.shard.y, 0.0)):
        array[...] = value
    let_through = case.network.layout.views(case.gradient()[0])[1][0]
    kept = let_through * 0.75
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-6)
    np.testing.assert_allclose(let_through / 20_000, 1.0, atol=0.02)


def test_layers_come_in_order_with_the_sums_known():
    _, sums, order = Case(spec_of("softmax", "cross_entropy", 4)).gradient()
    assert order == [(0, sums), (1, sums), (2, sums), (3, sums)]


def test_a_batch_without_rows_is_zeros_of_full_shape():
    case = Case(spec_of("softmax", "cross_entropy"))
    flat, sums, order = case.gradient(Batch(case.shard, np.array([], int)))
    np.testing.assert_array_equal(flat, 0.0)
    assert not np.signbit(flat).any()
    assert sums == (0.0, 0.0, 0.0)
    assert [layer for layer, _ in order] == [0, 1]


def test_more_rows_than_a_block_are_summed_block_by_block(monkeypatch):
    case = Case(spec_of("softmax", "cross_entropy", 3, dropout=0.0), num_rows=25, weight=True)
    whole, whole_sums, _ = case.gradient()
    monkeypatch.setattr(backprop, "BLOCK_ROWS", 10)
    case.backprop = Backprop.from_spec(case.spec, case.network)
    blocks, sums, order = case.gradient()
    np.testing.assert_allclose(blocks, whole, rtol=1e-12)
    assert sums == pytest.approx(whole_sums)
    assert order == [(0, sums), (1, sums), (2, sums)], "a layer is done once, after the last block"


@pytest.mark.parametrize("block_rows", [10, 100])
def test_a_layer_is_final_when_it_is_said_to_be_done(block_rows, monkeypatch):
    monkeypatch.setattr(backprop, "BLOCK_ROWS", block_rows)
    case = Case(spec_of("softmax", "cross_entropy", 3), num_rows=25)
    out = np.full_like(case.flat, np.nan)
    views = case.network.layout.views(out)
    when_done = {}

    def layer_done(i, _):
        when_done[i] = [array.copy() for array in views[i]]

    case.backprop.gradient(case.parameters, case.batch, out, layer_done)
    for i, arrays in when_done.items():
        for then, now in zip(arrays, views[i], strict=True):
            np.testing.assert_array_equal(then, now)


def test_all_rows_in_natural_order_need_no_copy_and_have_the_same_bits():
    case = Case(spec_of("softmax", "cross_entropy"))
    np.testing.assert_array_equal(case.gradient(Batch(case.shard, None))[0], case.gradient()[0])


def test_a_smaller_batch_after_a_larger_one():
    case = Case(spec_of("softmax", "cross_entropy"), num_rows=9)
    fresh = Case(spec_of("softmax", "cross_entropy"), num_rows=9)
    case.gradient()
    for batch in (Batch(case.shard, np.array([3, 1])), Batch(case.shard, np.arange(9))):
        np.testing.assert_array_equal(case.gradient(batch)[0], fresh.gradient(batch)[0])


def test_evaluation_is_the_mean_of_what_prediction_says():
    case = Case(spec_of("softmax", "cross_entropy"), num_rows=50, labels=True)
    sums = case.backprop.evaluate(case.parameters, case.shard)
    z = case.network.predict(case.parameters, case.shard.x)
    assert sums.weight == 50
    assert sums.metric == (z.argmax(axis=1) == case.shard.y).sum()
    assert sums.loss == pytest.approx(-np.log(z[np.arange(50), case.shard.y]).sum())


def test_the_metric_of_a_regression_is_its_squared_error():
    case = Case(spec_of("identity", "huber"))
    r = case.network.predict(case.parameters, case.shard.x) - case.shard.y
    assert case.gradient()[1].metric == pytest.approx((r * r).sum())


def test_the_metric_of_several_sigmoids_is_the_share_of_right_units():
    case = Case(spec_of("sigmoid", "binary_cross_entropy"))
    case.shard.y[...] = case.shard.y > 0.5
    z = case.network.predict(case.parameters, case.shard.x)
    assert case.gradient()[1].metric == pytest.approx(((z > 0.5) == case.shard.y).mean(axis=1).sum())


@pytest.mark.parametrize(("output", "loss"), PAIRS)
def test_float32_is_close_to_float64(output, loss):
    single, double = (Case(spec_of(output, loss, 3, dtype=dtype)) for dtype in ("float32", "float64"))
    double.flat[...] = single.flat
    shard = Shard(single.shard.x.astype(np.float64), single.shard.y.astype(np.float64))
    double.batch = Batch(shard, single.batch.rows)
    assert single.gradient()[0].dtype == np.float32
    np.testing.assert_allclose(single.gradient()[0], double.gradient()[0], rtol=2e-4, atol=2e-4)


def test_no_parameter_sized_memory_is_taken_after_the_first_step():
    import tracemalloc

    spec = spec_of("softmax", "cross_entropy", 3)
    spec.network.layers[0].units, spec.network.layers[1].units = 4000, 400
    case = Case(spec)
    out = np.empty_like(case.flat)
    case.backprop.gradient(case.parameters, case.batch, out, lambda *_: None)
    tracemalloc.start()
    case.backprop.gradient(case.parameters, case.batch, out, lambda *_: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    widest = 7 * 4000 * 8
    assert peak < widest / 2 < case.flat.nbytes, "numpy's buffers of 8,192 elements, and a few numbers a row"


def test_depths_and_pairs_are_all_there():
    assert len(list(itertools.product(PAIRS, DEPTHS))) == 168
