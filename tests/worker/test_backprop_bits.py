"""The bits of a gradient, against loops written from the text that fixes the computation; they share only numpy."""

import numpy as np
import pytest

from lockstep_proto.spec import read_spec
from lockstep_worker.backprop import Backprop
from lockstep_worker.batches import Batch
from lockstep_worker.network import Network
from lockstep_worker.shard import Shard

A, B = np.sqrt(2.0 / np.pi).item(), 0.044715
HUBER_DELTA = 0.7


def s(m):
    return np.exp(np.minimum(m, 0)) / (np.exp(-np.abs(m)) + 1)


def gelu_h(m):
    c = np.clip(m, -10.0, 10.0)
    return c, np.tanh((((c * c) * B + 1) * c) * A)


def gelu_through(d, m, z):
    c, h = gelu_h(m)
    g = (((c * c) * (3 * B) + 1) * A) * c
    return d * (((g * (1 - h * h) + h) + 1) * 0.5)


def softmax(m):
    e = np.exp(m - m.max(axis=1, keepdims=True))
    return e / np.add.reduce(e, axis=1, keepdims=True)


def softplus(m):
    return np.maximum(m, 0) + np.log1p(np.exp(-np.abs(m)))


def positive(z):
    return (z > 0).astype(z.dtype)


SIGMA = {
    "sigmoid": (s, lambda d, m, z: d * ((1 - z) * z)),
    "tanh": (np.tanh, lambda d, m, z: d * (1 - z * z)),
    "relu": (lambda m: np.maximum(m, 0), lambda d, m, z: d * positive(z)),
    "leaky_relu": (lambda m: np.maximum(m, m * 0.01), lambda d, m, z: d * np.maximum(positive(z), 0.01)),
    "elu": (
        lambda m: np.maximum(m, 0) + np.expm1(np.minimum(m, 0)),
        lambda d, m, z: d * (np.minimum(z, 0) + 1),
    ),
    "gelu": (lambda m: m * ((gelu_h(m)[1] + 1) * 0.5), gelu_through),
    "silu": (lambda m: m * s(m), lambda d, m, z: d * (((1 - s(m)) * m + 1) * s(m))),
    "softplus": (softplus, lambda d, m, z: d * s(m)),
    "identity": (lambda m: m, lambda d, m, z: d),
    "softmax": (softmax, lambda d, m, z: (d - np.add.reduce(d * z, axis=1, keepdims=True)) * z),
}


def reduce(values):
    return np.add.reduce(values, axis=1)


def norm(r):
    q = np.sqrt(reduce(r * r))
    return q, r / np.where(q > 0, q, 1)[:, None]


def huber(r):
    h = np.clip(r, -HUBER_DELTA, HUBER_DELTA) * 0.5
    return 2 * reduce((r - h) * h), h + h


LOSS = {
    "norm": norm,
    "squared_error": lambda r: (0.5 * reduce(r * r), r),
    "absolute_error": lambda r: (reduce(np.abs(r)), np.sign(r)),
    "huber": huber,
}
PAIRS = [(output, loss) for output in SIGMA for loss in LOSS]
PAIRS += [("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy")]


def rows_of_loss(output, loss, m, z, y):
    """q and δ^L."""
    if loss == "cross_entropy":
        t = m.max(axis=1, keepdims=True)
        total = np.add.reduce(np.exp(m - t), axis=1, keepdims=True)
        return reduce((np.log(total) - (m - t)) * y), z - y
    if loss == "binary_cross_entropy":
        return reduce((np.maximum(m, 0) - y * m) + np.log1p(np.exp(-np.abs(m)))), z - y
    q, d = LOSS[loss](z - y)
    return q, SIGMA[output][1](d, m, z)


def metric_of(output, loss, z, y):
    if output == "softmax":
        return np.argmax(z, axis=1) == np.argmax(y, axis=1)
    if loss == "binary_cross_entropy":
        return ((z >= 0.5) == (y >= 0.5)).sum(axis=1) / z.shape[1]
    return reduce((z - y) * (z - y))


def one_block(names, loss, layers, x, y, w, streams, p):
    """The flat gradient of one block of rows, and its sums. Dropout goes where there are streams."""
    went_on, ms, zs, keeps = [x], [], [], []
    for name, (weights, biases), stream in zip(names, layers, streams, strict=True):
        ms.append(np.matmul(went_on[-1], weights) + biases)
        zs.append(SIGMA[name][0](ms[-1]))
        keeps.append(None)
        if stream is not None:
            keeps[-1] = (stream.random(zs[-1].shape, np.float32) >= p).astype(x.dtype) * (1.0 / (1.0 - p))
        went_on.append(zs[-1] if stream is None else zs[-1] * keeps[-1])
    q, d = rows_of_loss(names[-1], loss, ms[-1], zs[-1], y)
    metric = metric_of(names[-1], loss, zs[-1], y).astype(np.float64)
    q = q.astype(np.float64)
    sums = [len(x), np.add.reduce(q), np.add.reduce(metric)]
    if w is not None:
        d = d * w.astype(x.dtype)[:, None]
        sums = [np.add.reduce(w), np.add.reduce(q * w), np.add.reduce(metric * w)]
    parts = []
    for i in reversed(range(len(layers))):
        parts = [np.matmul(went_on[i].T, d).ravel(), np.add.reduce(d, axis=0), *parts]
        if i > 0:
            d = np.matmul(d, layers[i][0].T)
            d = d if keeps[i - 1] is None else d * keeps[i - 1]
            d = SIGMA[names[i - 1]][1](d, ms[i - 1], zs[i - 1])
    return np.concatenate(parts), np.array(sums)


def by_the_text(names, loss, layers, x, y, w, p):
    streams = [None] * len(names)
    if p:
        keys = [(3, 1, 6, 4, layer) for layer in range(2, len(names) + 1)]
        streams = [*(np.random.Generator(np.random.Philox(np.random.SeedSequence(key))) for key in keys), None]
    flat = sums = None
    for lo in range(0, len(x), 8192):
        hi = lo + 8192
        weights = None if w is None else w[lo:hi]
        more, more_sums = one_block(names, loss, layers, x[lo:hi], y[lo:hi], weights, streams, p)
        flat = more if flat is None else flat + more
        sums = more_sums if sums is None else sums + more_sums
    return flat, sums


class Case:
    def __init__(self, names, loss, dtype, *, p=0.0, labels=False, weight=False, num_rows=37, scale=1.0):
        units = [*[6 + i for i in range(len(names) - 1)], 5]
        layers = [{"units": n, "activation": name, "dropout": p} for n, name in zip(units, names, strict=True)]
        del layers[-1]["dropout"]
        fields = {"network": {"inputs": 9, "layers": layers}, "loss": loss, "batch_size": 8, "epochs": 1}
        fields |= {"huber_delta": HUBER_DELTA} if loss == "huber" else {}
        self.spec = read_spec(fields | {"dtype": np.dtype(dtype).name})
        self.names, self.loss, self.p = names, loss, p
        self.network = Network.from_spec(self.spec)
        rng = np.random.default_rng(8)
        self.flat = rng.normal(0, scale, self.network.layout.num_parameters).astype(dtype)
        x = rng.normal(size=(2 * num_rows, 9)).astype(dtype)
        y = rng.uniform(size=(2 * num_rows, 5)).astype(dtype)
        y = rng.integers(0, 5, 2 * num_rows) if labels else y
        self.shard = Shard(x, y, rng.uniform(0, 2, 2 * num_rows) if weight else None)
        self.rows = rng.permutation(2 * num_rows)[:num_rows]

    def expected(self):
        shard, rows = self.shard, self.rows
        y = shard.y[rows] if shard.y.ndim == 2 else np.eye(5, dtype=self.flat.dtype)[shard.y[rows]]
        w = None if shard.weight is None else shard.weight[rows]
        return by_the_text(self.names, self.loss, self.network.layout.views(self.flat), shard.x[rows], y, w, self.p)

    def computed(self, flat=None, out=None):
        parameters = self.network.layout.views(self.flat if flat is None else flat)
        out = np.full_like(self.flat, np.nan) if out is None else out
        batch = Batch(self.shard, self.rows, seed=1, step=6, shard_index=4)
        sums = Backprop.from_spec(self.spec, self.network).gradient(parameters, batch, out, lambda *_: None)
        return out, sums

    def check(self):
        (expected, expected_sums), (flat, sums) = self.expected(), self.computed()
        np.testing.assert_array_equal(flat, expected)
        assert list(sums) == expected_sums.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("output", "loss"), PAIRS)
def test_every_output_and_loss(output, loss, dtype):
    Case(["tanh", "relu", output], loss, dtype).check()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hidden", [name for name in SIGMA if name != "softmax"])
def test_every_hidden_activation_with_dropout_labels_and_sample_weights(hidden, dtype):
    Case([hidden, hidden, "softmax"], "cross_entropy", dtype, p=0.3, labels=True, weight=True).check()


@pytest.mark.parametrize("num_rows", [1, 8192, 8193, 16_400])
def test_blocks_of_8192_rows(num_rows):
    Case(["tanh", "softmax"], "cross_entropy", np.float32, p=0.3, weight=True, num_rows=num_rows).check()


@pytest.mark.parametrize("names", [["identity"], ["sigmoid"], ["gelu"], ["softmax"]])
def test_a_network_of_one_layer(names):
    Case(names, "squared_error", np.float32).check()


@pytest.mark.parametrize("hidden", ["sigmoid", "gelu", "silu", "softplus", "elu", "leaky_relu"])
def test_saturated_units(hidden):
    Case([hidden, hidden, "softmax"], "cross_entropy", np.float32, scale=30.0).check()


@pytest.mark.parametrize("offset", [1, 3, 7, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_where_arrays_lie_in_memory(dtype, offset):
    case = Case(["gelu", "tanh", "softmax"], "cross_entropy", dtype, num_rows=300)
    expected, expected_sums = case.computed()
    moved, out = (np.full(case.flat.size + offset, np.nan, dtype)[offset:] for _ in range(2))
    moved[...] = case.flat
    flat, sums = case.computed(moved, out)
    np.testing.assert_array_equal(flat, expected)
    assert sums == expected_sums
