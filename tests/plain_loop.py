"""The oracle of the same-bits tests: a plain loop in one process, written from the text that fixes the computation.

It shares nothing with the product but numpy. Slow and simple on purpose: no chunks, no buffers, no threads.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Settings:
    sizes: tuple = (5, 7, 3)
    hidden: str = "relu"  # relu, tanh, sigmoid
    loss: str = "cross_entropy"  # with softmax; squared_error and norm with identity
    optimizer: str = "sgd"  # sgd, adam
    learning_rate: float = 0.1
    momentum: float = 0.0
    batch: int | None = 32  # None for full
    epochs: int = 3
    shards: int = 8
    seed: int = 0
    dtype: type = np.float32
    dropout: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    bfloat16: bool = False  # whether gradients and parameters travel so


@dataclass
class Result:
    flat: np.ndarray = None
    versions: list = field(default_factory=list)  # flat, from version 0 on
    losses: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    validation: list = field(default_factory=list)

    def digest(self, s):
        line = "lockstep.v1 " + np.dtype(s.dtype).name + "".join(f" {n}" for n in s.sizes) + "\n"
        return hashlib.sha256(line.encode() + self.flat.tobytes()).hexdigest()


def stream(*key):
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def rows_of_shard(n, v, i):
    """Contiguous; the first n mod v shards have one row more."""
    lo = sum(n // v + (1 if j < n % v else 0) for j in range(i))
    return np.arange(lo, lo + n // v + (1 if i < n % v else 0))


def tree_sum(values, lo, hi, add):
    if hi - lo == 1:
        return values[lo]
    power = 1
    while power * 2 < hi - lo:
        power *= 2
    return add(tree_sum(values, lo, lo + power, add), tree_sum(values, lo + power, hi, add))


def to_bfloat16(values):
    """The nearest floats with 8 bits of precision and the exponents of float32, ties to even; too large is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = values.astype(np.float64)
        _, exponent = np.frexp(exact)
        last_bit = np.ldexp(1.0, np.maximum(exponent, -125) - 8)
        return (np.rint(exact / last_bit) * last_bit).astype(np.float32)


def sigma(name, m):
    if name == "relu":
        return np.maximum(m, 0)
    if name == "tanh":
        return np.tanh(m)
    e = np.exp(-np.abs(m))
    return np.where(m >= 0, m.dtype.type(1), e) / (1 + e)


def through_sigma(name, d, z):
    if name == "relu":
        return d * (z > 0)
    return d * (1 - z * z) if name == "tanh" else d * (z * (1 - z))


def output(s, m, y):
    """q of each row, δ^L, ŷ."""
    if s.loss == "cross_entropy":
        top = m.max(axis=1, keepdims=True)
        e = np.exp(m - top)
        total = np.add.reduce(e, axis=1, keepdims=True)
        z = e / total
        return np.add.reduce(y * (np.log(total) - (m - top)), axis=1), z - y, z
    r = m - y
    if s.loss == "squared_error":
        return 0.5 * np.add.reduce(r * r, axis=1), r, m
    q = np.sqrt(np.add.reduce(r * r, axis=1))
    return q, r / np.where(q > 0, q, 1)[:, None], m


def forward(s, layers, x, streams=None):
    """The list of z^l, those before dropout, and what dropout keeps; last the net input m^L."""
    zs, before, keeps = [x], [], []
    for i, (w, b) in enumerate(layers[:-1]):
        z = sigma(s.hidden, np.matmul(zs[-1], w) + b)
        before.append(z)
        keep = None
        if s.dropout and streams is not None:
            keep = (streams[i].random(z.shape, np.float32) >= s.dropout).astype(s.dtype)
            keep = keep * (1.0 / (1.0 - s.dropout))
            z = z * keep
        keeps.append(keep)
        zs.append(z)
    w, b = layers[-1]
    return zs, before, keeps, np.matmul(zs[-1], w) + b


def shard_gradient(s, layers, x, y, step, shard, weight):
    """The flat gradient sum of one shard's rows, and (weight, loss)."""
    total, sums = None, np.zeros(2)
    streams = [stream(3, s.seed, step, shard, l) for l in range(2, len(s.sizes) + 1)]
    for lo in range(0, len(x), 8192):
        xb, yb, wb = x[lo : lo + 8192], y[lo : lo + 8192], None if weight is None else weight[lo : lo + 8192]
        zs, before, keeps, m = forward(s, layers, xb, streams)
        q, d, _ = output(s, m, yb)
        q = q.astype(np.float64)
        if wb is not None:
            d = d * wb.astype(s.dtype)[:, None]
            block = np.array([np.add.reduce(wb), np.add.reduce(q * wb)])
        else:
            block = np.array([len(xb), np.add.reduce(q)])
        sums = block if lo == 0 else sums + block
        parts = []
        for i in range(len(layers) - 1, -1, -1):
            parts = [np.matmul(zs[i].T, d).ravel(), np.add.reduce(d, axis=0), *parts]
            if i:
                d = np.matmul(d, layers[i][0].T)
                d = d if keeps[i - 1] is None else d * keeps[i - 1]
                d = through_sigma(s.hidden, d, before[i - 1])
        flat = np.concatenate(parts)
        total = flat if total is None else total + flat
    if total is None:
        total = np.zeros(sum(a * b + b for a, b in zip(s.sizes, s.sizes[1:], strict=False)), s.dtype)
    return total, sums


def block_norm(flat):
    total = 0.0
    for lo in range(0, flat.size, 65536):
        total += float(np.add.reduce(np.square(flat[lo : lo + 65536].astype(np.float64))))
    return np.sqrt(total)


def layers_of(s, flat):
    layers, at = [], 0
    for n, k in zip(s.sizes, s.sizes[1:], strict=False):
        layers.append((flat[at : at + n * k].reshape(n, k), flat[at + n * k : at + n * k + k]))
        at += n * k + k
    return layers


def initial(s):
    parts = []
    for l, (n, k) in enumerate(zip(s.sizes, s.sizes[1:], strict=False), start=2):
        a = np.sqrt(6.0 / (n + k))
        parts += [stream(1, s.seed, l).uniform(-a, a, (n, k)).astype(s.dtype).ravel(), np.zeros(k, s.dtype)]
    return np.concatenate(parts)


def one_hot(s, y):
    if y.ndim == 2:
        return y.astype(s.dtype)
    dense = np.zeros((len(y), s.sizes[-1]), s.dtype)
    dense[np.arange(len(y)), y] = 1
    return dense


def train(s, x, y, validation=None, weight=None):
    *_, result = training(s, x, y, validation, weight)
    return result


class Digests:
    """The digests of all versions, computed as far as they are asked for."""

    def __init__(self, s, x, y):
        self._s, self._results, self._known = s, training(s, x, y), []

    def __getitem__(self, version):
        while len(self._known) <= version:
            result = next(self._results)
            result.versions.clear()
            self._known.append(result.digest(self._s))
        return self._known[version]


def training(s, x, y, validation=None, weight=None):
    """Yield the result as it is at each version, from 0 on."""
    x, y = np.ascontiguousarray(x, s.dtype), one_hot(s, y)
    is_weight = np.concatenate(
        [np.r_[np.ones(n * k, bool), np.zeros(k, bool)] for n, k in zip(s.sizes, s.sizes[1:], strict=False)]
    )
    shards = [rows_of_shard(len(x), s.shards, i) for i in range(s.shards)]
    n = None if s.batch is None else s.batch // s.shards
    steps = 1 if n is None else -(-max(map(len, shards)) // n)
    flat, state, t = initial(s), {}, 0
    result = Result(flat)
    travelled = to_bfloat16 if s.bfloat16 else lambda values: values
    result.versions.append(flat)
    yield result
    for epoch in range(s.epochs):
        orders = [stream(2, s.seed, epoch, i).permutation(len(rows)) for i, rows in enumerate(shards)]
        for k in range(steps):
            leaves, sums = [], []
            layers = layers_of(s, travelled(flat))
            for i, rows in enumerate(shards):
                mine = rows if n is None else rows[orders[i][k * n : (k + 1) * n]]
                w = None if weight is None else weight[mine]
                g, block = shard_gradient(s, layers, x[mine], y[mine], t, i, w)
                leaves.append(travelled(g))
                sums.append(block)
            g = tree_sum(leaves, 0, s.shards, lambda left, right: travelled(left + right))
            rows_weight, loss = tree_sum(sums, 0, s.shards, np.add)
            g = g / s.dtype(rows_weight)
            penalty = 0.0
            if s.l2:
                g[is_weight] += s.l2 * flat[is_weight]
                penalty = 0.5 * s.l2 * float(np.sum(np.square(flat[is_weight].astype(np.float64))))
            result.losses.append(loss / rows_weight + penalty)
            result.weights.append(rows_weight)
            result.norms.append(block_norm(g))
            if s.clip_norm is not None and result.norms[-1] > s.clip_norm:
                g = g * s.dtype(s.clip_norm / result.norms[-1])
            flat = result.flat = update(s, flat, g, state, t)
            result.versions.append(flat)
            t += 1
            yield result
        if validation is not None:
            result.validation.append(evaluate(s, flat, *validation))


def update(s, w, g, state, t):
    if s.optimizer == "adam":
        b1, b2, eps = 0.9, 0.999, 1e-8
        m, v = state.get("m", np.zeros_like(w)), state.get("s", np.zeros_like(w))
        v = v * b2 + (g * g) * (1.0 - b2)
        m = m * b1 + g * (1.0 - b1)
        state["m"], state["s"] = m, v
        root = np.sqrt(v) * (1.0 / np.sqrt(1.0 - b2 ** (t + 1)).item()) + eps
        return w - (m * (s.learning_rate / (1.0 - b1 ** (t + 1)))) / root
    if s.momentum:
        state["v"] = state.get("v", np.zeros_like(w)) * s.momentum + g
        return w - state["v"] * s.learning_rate
    return w - g * s.learning_rate


def evaluate(s, flat, x, y):
    x, y = np.ascontiguousarray(x, s.dtype), one_hot(s, y)
    sums = []
    for i in range(s.shards):
        rows = rows_of_shard(len(x), s.shards, i)
        block = np.zeros(2)
        if len(rows):
            *_, m = forward(s, layers_of(s, flat), x[rows])
            block = np.array([len(rows), np.add.reduce(output(s, m, y[rows])[0].astype(np.float64))])
        sums.append(block)
    weight, loss = tree_sum(sums, 0, s.shards, np.add)
    return loss / weight
