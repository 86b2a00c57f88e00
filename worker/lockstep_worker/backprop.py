"""The gradient of one shard at one step: the computation that fixes the bits (NUMERICS_REVISION 1).

From this text and numpy alone the same bits can be computed again. Names in code are numpy's functions, one call an
operation, in the order of the parentheses (which operand of + or * comes first makes no difference). Every array is
C-contiguous and of the job's dtype unless said otherwise; every scalar is a Python float, which takes the dtype of the
array it meets; BLAS has one thread. Lists begin with layer 2, z^1 = X, N is the number of rows.

Streams. stream(a, b, ...) = Generator(Philox(SeedSequence([a, b, ...]))).

Rows. Epoch e takes the n rows of shard i in the order stream(2, seed, e, i).permutation(n), or in their natural order
if the batch is full. The rows of the step, in that order, are worked in blocks of 8,192 (the last one smaller). X and
Y are the block's rows; class labels become a Y of zeros with a single 1 in each row.

Forward, for l = 2..L (the text's (4), (5), (7)):
    m^l = matmul(z^{l-1}, W^l) + b^l        one product, never cut in parts
    z^l = σ^l(m^l)
Dropout p > 0 of layer l, in training only: one stream(3, seed, step, shard, l) goes through the blocks of the step,
    u = stream.random(z^l.shape, float32);  k^l = (u >= p, as 0 and 1) * (1.0 / (1.0 - p));  z^l k^l goes on to l + 1.
σ^l, and d taken through its derivative (always with z^l before dropout), where s(m) is the sigmoid:
    sigmoid     exp(minimum(m, 0)) / (exp(-abs(m)) + 1)                 d * ((1 - z) * z)
    tanh        tanh(m)                                                 d * (1 - z * z)
    relu        maximum(m, 0)                                           d * (z > 0, as 0 and 1)
    leaky_relu  maximum(m, m * 0.01)                                    d * maximum((z > 0, as 0 and 1), 0.01)
    elu         maximum(m, 0) + expm1(minimum(m, 0))                    d * (minimum(z, 0) + 1)
    gelu        m * ((h + 1) * 0.5)                                     d * (((g * (1 - h * h) + h) + 1) * 0.5)
                with a = sqrt(2 / pi), b = 0.044715, c = clip(m, -10, 10), h = tanh((((c * c) * b + 1) * c) * a)
                and g = (((c * c) * (3 * b) + 1) * a) * c
    silu        m * s(m)                                                d * (((1 - s(m)) * m + 1) * s(m))
    softplus    maximum(m, 0) + log1p(exp(-abs(m)))                     d * s(m)
    identity    m                                                       d
    softmax     e / add.reduce(e, axis=1, keepdims=True)                (d - f) * z
                with e = exp(m - m.max(axis=1, keepdims=True)) and f = add.reduce(d * z, axis=1, keepdims=True)

Loss: q, one value a row, and d = ∂Q/∂ŷ, with ŷ = z^L, r = ŷ - Y; every add.reduce is over axis=1:
    norm                  q = sqrt(add.reduce(r * r));  d = r / where(q > 0, q, 1)[:, None]
    squared_error         q = 0.5 * add.reduce(r * r);  d = r
    absolute_error        q = add.reduce(abs(r));       d = sign(r)
    huber                 h = clip(r, -δ, δ) * 0.5;  q = 2 * add.reduce((r - h) * h);  d = h + h
    cross_entropy         t = m^L.max(axis=1, keepdims=True);  S = add.reduce(exp(m^L - t), keepdims=True)
                          q = add.reduce((log(S) - (m^L - t)) * Y)
    binary_cross_entropy  q = add.reduce((maximum(m^L, 0) - Y * m^L) + log1p(exp(-abs(m^L))))
The last two are fused: δ^L = ŷ - Y. For the others δ^L is d taken through the derivative of σ^L (the text's (13); with
the Jacobian, for softmax). Where there are sample weights w (float64), δ^L * w.astype(dtype)[:, None] takes its place.

Backward, for l = L..2 (the text's (15), (17), (22), whose outer product is the other way round than it must be for W^l
of shape (n_{l-1}, n_l)), with what went on from layer l - 1, so after dropout, as z:
    ΔW^l = matmul(z.T, δ^l);  Δb^l = add.reduce(δ^l, axis=0)          .T is a view, never a copy
    d = matmul(δ^l, W^l.T);  d * k^{l-1} where layer l - 1 has dropout;  δ^{l-1} = d through σ^{l-1}'; not for l = 2

Blocks. ΔW^l and Δb^l of the first block are the value; those of every later one are computed apart and added to it.

Sums of a block, in float64, to which q and the metric are cast first: weight = add.reduce(w), loss = add.reduce(q * w),
metric = add.reduce(metric * w); without sample weights N, add.reduce(q), add.reduce(metric). Blocks are added in order.
The metric of a row: softmax in the last layer: argmax(ŷ) == argmax(Y); else binary_cross_entropy: the number of units
with (ŷ >= 0.5) == (Y >= 0.5), divided by n_L; else add.reduce(r * r, axis=1).

A shard without rows in the step gives +0.0 everywhere. Nothing here divides by the weight: the server does, once.

With wire_dtype = bfloat16, W^l and b^l of a step are the server's rounded to bfloat16, and ΔW^l and Δb^l of a shard,
when its last block has been added, are rounded, as is every sum of two nodes; an evaluation takes W^l and b^l as they
are (lockstep_proto.bfloat16).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.codec import Sums
from lockstep_proto.v1 import job_pb2
from lockstep_worker.losses import Loss, loss_from_spec
from lockstep_worker.metric import Metric, metric_from_spec
from lockstep_worker.network import BLOCK_ROWS, Network
from lockstep_worker.order import dropout_stream
from lockstep_worker.shard import Shard
from lockstep_worker.workspace import Block, Workspace

Array = npt.NDArray[Any]
Views = Sequence[tuple[Array, Array]]
Streams = list[np.random.Generator | None]
_NO_ROWS = Sums(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Batch:
    """Rows of one shard. `rows` are their numbers within the shard, or None for all in their natural order."""

    shard: Shard
    rows: Array | None
    seed: int = 0
    step: int = 0
    shard_index: int = 0

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return self.shard.num_rows if self.rows is None else len(self.rows)


class Backprop:
    """Computes gradients in one thread, in arrays that it keeps."""

    def __init__(self, network: Network, loss: Loss, metric: Metric) -> None:
        self._network = network
        self._loss = loss
        self._metric = metric
        self._workspace = Workspace(network, loss.fused)
        self._scratch: Views | None = None

    @classmethod
    def from_spec(cls, spec: job_pb2.JobSpec, network: Network) -> "Backprop":
        """Return the computation of a job."""
        return cls(network, loss_from_spec(spec), metric_from_spec(spec))

    def gradient(self, parameters: Views, batch: Batch, out: Views, layer_done: Callable[[int, Sums], None]) -> Sums:
        """Compute the sums of ΔW^l and Δb^l over the rows into `out`; return weight, loss and metric.

        As soon as a layer (index 0 is layer 2) is final, last layer first, `layer_done(index, sums)` is called.
        """
        layers = range(len(parameters) - 1, -1, -1)
        if batch.num_rows == 0:
            for i in layers:
                out[i][0].fill(0)
                out[i][1].fill(0)
                layer_done(i, _NO_ROWS)
            return _NO_ROWS
        streams = self._dropout_streams(batch)
        sums = _NO_ROWS
        for lo, hi in _blocks(batch.num_rows):
            block = self._workspace.block(hi - lo)
            x, y, w = _gather(block, batch, lo, hi)
            sums = sums.plus(self._forward(block, parameters, x, y, w, streams))
            self._output_error(block, w)
            into = out if lo == 0 else self._scratch_views(out)
            for i in layers:
                self._backward(block, i, parameters, x, into)
                if lo > 0:
                    _add(out[i], into[i])
                if hi == batch.num_rows:
                    layer_done(i, sums)
        return sums

    def evaluate(self, parameters: Views, shard: Shard) -> Sums:
        """Return weight, loss and metric of all rows of a shard, without dropout."""
        batch, sums = Batch(shard, None), _NO_ROWS
        for lo, hi in _blocks(shard.num_rows):
            block = self._workspace.block(hi - lo)
            x, y, w = _gather(block, batch, lo, hi)
            sums = sums.plus(self._forward(block, parameters, x, y, w, None))
        return sums

    def _forward(
        self, block: Block, parameters: Views, x: Array, y: Array, w: Array | None, streams: Streams | None
    ) -> Sums:
        """Fill the block with m^l, z^l, and ∂Q/∂ŷ (δ^L if the loss is fused); return its sums."""
        z, last = x, len(parameters) - 1
        for i, (weights, biases) in enumerate(parameters):
            np.matmul(z, weights, out=block.m[i])  # (N, n_l)
            block.m[i] += biases
            if i < last or not self._loss.fused:
                self._network.activations[i].forward(block.m[i], block.z[i], block.t[i])
            z = block.z[i]
            if streams is not None and (stream := streams[i]) is not None:
                z = self._drop(block, i, stream)
        q = self._loss.rows(block.m[last], z, y, block.d[last], block.t[last])  # (N,)
        return _sums(w, q, self._metric(z, y, block.t[last]))

    def _output_error(self, block: Block, w: Array | None) -> None:
        """Turn ∂Q/∂ŷ into δ^L."""
        d = block.d[-1]
        if not self._loss.fused:
            self._network.activations[-1].backward(d, block.m[-1], block.z[-1], block.t[-1])
        if w is not None:
            d *= w.astype(d.dtype)[:, None]

    def _backward(self, block: Block, i: int, parameters: Views, x: Array, into: Views) -> None:
        """Write layer i's gradient, and δ of the layer before it."""
        z = block.dropped[i - 1] if i > 0 else x
        np.matmul(z.T, block.d[i], out=into[i][0])  # (n_{l-1}, n_l)
        np.add.reduce(block.d[i], axis=0, out=into[i][1])  # (n_l,)
        if i == 0:
            return
        before, keep = block.d[i - 1], block.keep[i - 1]
        np.matmul(block.d[i], parameters[i][0].T, out=before)  # (N, n_{l-1})
        if keep is not None:
            before *= keep
        self._network.activations[i - 1].backward(before, block.m[i - 1], block.z[i - 1], block.t[i - 1])

    def _drop(self, block: Block, i: int, stream: np.random.Generator) -> Array:
        p, u, keep = self._network.dropouts[i], block.u[i], block.keep[i]
        assert keep is not None
        stream.random(dtype=np.float32, out=u)
        np.greater_equal(u, p, out=keep)
        keep *= 1.0 / (1.0 - p)
        return np.multiply(block.z[i], keep, out=block.dropped[i])

    def _dropout_streams(self, batch: Batch) -> Streams | None:
        if not any(self._network.dropouts):
            return None
        return [
            dropout_stream(batch.seed, batch.step, batch.shard_index, i + 2) if p else None
            for i, p in enumerate(self._network.dropouts)
        ]

    def _scratch_views(self, out: Views) -> Views:
        if self._scratch is None:
            self._scratch = [(np.empty_like(weights), np.empty_like(biases)) for weights, biases in out]
        return self._scratch


def _gather(block: Block, batch: Batch, lo: int, hi: int) -> tuple[Array, Array, Array | None]:
    """Return X, Y and w of some rows; without a copy where they are whole ranges of the shard."""
    shard = batch.shard
    if batch.rows is None:
        x, y = shard.x[lo:hi], shard.y[lo:hi]
        w = None if shard.weight is None else shard.weight[lo:hi]
    else:
        rows = batch.rows[lo:hi]
        # mode "clip": with "raise" numpy would write to `out` through a copy
        x = np.take(shard.x, rows, axis=0, out=block.x, mode="clip")
        y = shard.y[rows] if shard.y.ndim == 1 else np.take(shard.y, rows, axis=0, out=block.y, mode="clip")
        w = None if shard.weight is None else shard.weight[rows]
    return x, y if y.ndim == 2 else _one_hot(block, y), w


def _one_hot(block: Block, labels: Array) -> Array:
    block.y.fill(0)
    block.y[block.index, labels] = 1
    return block.y


def _add(total: tuple[Array, Array], more: tuple[Array, Array]) -> None:
    for a, b in zip(total, more, strict=True):
        np.add(a, b, out=a)


def _sums(w: Array | None, q: Array, metric: Array) -> Sums:
    q, metric = q.astype(np.float64), metric.astype(np.float64)
    if w is None:
        return Sums(float(len(q)), float(np.add.reduce(q)), float(np.add.reduce(metric)))
    return Sums(float(np.add.reduce(w)), float(np.add.reduce(q * w)), float(np.add.reduce(metric * w)))


def _blocks(num_rows: int) -> Iterator[tuple[int, int]]:
    return ((lo, min(lo + BLOCK_ROWS, num_rows)) for lo in range(0, num_rows, BLOCK_ROWS))
