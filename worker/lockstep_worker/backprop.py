"""The gradient of one shard at one step: the computation that fixes the bits (NUMERICS_REVISION 1).

Everything is C-contiguous and of the job's dtype unless said otherwise; scalars are Python floats (NEP 50); one BLAS
thread. Symbols: N rows, z^1 = X; lists begin with layer 2.

Rows. The shard's rows of the step, in their order, are worked in blocks of at most 8,192. X and y are gathered with
`take`. Class labels become a block Y of zeros with a one in each row.

Forward, for l = 2..L (the text's (4), (5), (7)):
    m^l = matmul(z^{l-1}, W^l); m^l += b^l;  z^l = σ(m^l)
    dropout p of a layer: u = stream(3, seed, step, shard, l).random(z.shape, float32), one stream through the blocks;
    k = (u >= p) as dtype, times dtype(1 / (1 − p)); z^l = z^l k.

Loss. q and d as `losses` writes them down, operation by operation. Where the loss is not fused, δ^L is d taken through
σ' of the last layer (the text's (13), with the Jacobian for softmax). With sample weights w (float64) each row of δ^L
is multiplied by w cast to dtype.

Backward, for l = L..2 (the text's (15), (17), (22), whose outer product is the other way round for W of shape
(n_{l-1}, n_l)):
    ΔW^l = matmul(z^{l-1}.T, δ^l);  Δb^l = add.reduce(δ^l, axis=0)
    if l > 2: d = matmul(δ^l, W^l.T); d *= k^{l-1} where layer l−1 has dropout; δ^{l-1} = d ⊙ σ'(m^{l-1})
σ' is made from z^{l-1} before dropout, as `activations` writes it down.

Blocks. The first block's ΔW, Δb are the value; each later one's are computed apart and added: value += block.
Sums, in float64: weight = add.reduce(w), or N; loss = add.reduce(q as float64 [* w]); metric likewise over its rows;
blocks are added in order, from 0.0. A shard without rows gives +0.0 everywhere.

Metric of a row. Last layer softmax: 1 if argmax(ŷ) = argmax(Y), else 0. Loss binary_cross_entropy: the share of units
with (ŷ >= 0.5) = (Y >= 0.5). Else: add.reduce(r r) with r = ŷ − Y.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.codec import Sums
from lockstep_proto.v1 import job_pb2
from lockstep_worker.losses import Loss, loss_from_spec
from lockstep_worker.network import BLOCK_ROWS, Network
from lockstep_worker.order import dropout_stream
from lockstep_worker.shard import Shard

Array = npt.NDArray[Any]
Views = Sequence[tuple[Array, Array]]
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
    """Computes gradients in one thread. Its workspace grows to the largest block it has seen, then stays."""

    def __init__(self, network: Network, loss: Loss, metric: "Metric") -> None:
        self._network = network
        self._loss = loss
        self._metric = metric
        self._space: _Workspace | None = None
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
            z, y, w = self._gather(batch, lo, hi)
            block_sums, d = self._forward(parameters, z, y, w, streams)
            sums = block_sums if lo == 0 else sums.plus(block_sums)
            into = out if lo == 0 else self._scratch_views(out)
            for i in layers:
                d = self._backward(i, parameters, d, z, into)
                if lo > 0:
                    out[i][0].__iadd__(into[i][0])
                    out[i][1].__iadd__(into[i][1])
                if hi == batch.num_rows:
                    layer_done(i, sums)
        return sums

    def evaluate(self, parameters: Views, shard: Shard) -> Sums:
        """Return weight, loss and metric of all rows of a shard, without dropout."""
        batch = Batch(shard, None)
        sums = _NO_ROWS
        for lo, hi in _blocks(shard.num_rows):
            z, y, w = self._gather(batch, lo, hi)
            block_sums, _ = self._forward(parameters, z, y, w, None)
            sums = block_sums if lo == 0 else sums.plus(block_sums)
        return sums

    def _forward(
        self, parameters: Views, x: Array, y: Array, w: Array | None, streams: list[Any] | None
    ) -> tuple[Sums, Array]:
        """Fill the workspace with z^l, and d with δ^L, for one block."""
        space, n, last = self._workspace(len(x)), len(x), len(parameters) - 1
        z = x
        for i, (weights, biases) in enumerate(parameters):
            m = space.m[i][:n]
            np.matmul(z, weights, out=m)  # (N, n_l)
            m += biases
            if i < last or not self._loss.fused:
                self._network.activations[i].forward(m, space.z[i][:n])
            z = space.z[i][:n]
            if streams is not None and streams[i] is not None:
                z = self._drop(i, z, streams[i])
        m, d = space.m[last][:n], space.d[last][:n]
        q = self._loss.rows(m, z, y, d)  # (N,)
        metric = self._metric(z, y)  # (N,)
        if not self._loss.fused:
            self._network.activations[last].backward(d, m, z)
        if w is not None:
            d *= w.astype(d.dtype)[:, None]
        return _sums(w, q, metric), d

    def _backward(self, i: int, parameters: Views, d: Array, x: Array, into: Views) -> Array:
        """Write layer i's gradient; return δ of the layer before it."""
        space, n = self._workspace(len(x)), len(x)
        below = x if i == 0 else space.dropped[i - 1][:n]
        np.matmul(below.T, d, out=into[i][0])  # (n_{l-1}, n_l)
        np.add.reduce(d, axis=0, out=into[i][1])  # (n_l,)
        if i == 0:
            return d
        before = space.d[i - 1][:n]
        np.matmul(d, parameters[i][0].T, out=before)  # (N, n_{l-1})
        if self._network.dropouts[i - 1]:
            before *= space.keep[i - 1][:n]
        self._network.activations[i - 1].backward(before, space.m[i - 1][:n], space.z[i - 1][:n])
        return before

    def _drop(self, i: int, z: Array, stream: np.random.Generator) -> Array:
        space, p = self._workspace(len(z)), self._network.dropouts[i]
        keep, dropped = space.keep[i][: len(z)], space.dropped[i][: len(z)]
        np.copyto(keep, stream.random(z.shape, np.float32) >= p)
        keep *= 1.0 / (1.0 - p)
        np.multiply(z, keep, out=dropped)
        return dropped

    def _dropout_streams(self, batch: Batch) -> list[np.random.Generator | None] | None:
        if not any(self._network.dropouts):
            return None
        return [
            dropout_stream(batch.seed, batch.step, batch.shard_index, i + 2) if p else None
            for i, p in enumerate(self._network.dropouts)
        ]

    def _gather(self, batch: Batch, lo: int, hi: int) -> tuple[Array, Array, Array | None]:
        shard, space = batch.shard, self._workspace(hi - lo)
        if batch.rows is None:
            x, y = shard.x[lo:hi], shard.y[lo:hi]
            w = None if shard.weight is None else shard.weight[lo:hi]
        else:
            rows = batch.rows[lo:hi]
            # mode "clip": with "raise" numpy would write to `out` through a copy
            x = np.take(shard.x, rows, axis=0, out=space.x[: hi - lo], mode="clip")
            y = shard.y[rows]
            w = None if shard.weight is None else shard.weight[rows]
        return x, self._one_hot(y) if y.ndim == 1 else y, w

    def _one_hot(self, labels: Array) -> Array:
        y = self._workspace(len(labels)).y[: len(labels)]
        y.fill(0)
        y[np.arange(len(labels)), labels] = 1
        return y

    def _workspace(self, num_rows: int) -> "_Workspace":
        if self._space is None or self._space.num_rows < num_rows:
            self._space = _Workspace(self._network, num_rows)
        return self._space

    def _scratch_views(self, out: Views) -> Views:
        if self._scratch is None:
            self._scratch = [(np.empty_like(weights), np.empty_like(biases)) for weights, biases in out]
        return self._scratch


class _Workspace:
    """Arrays of one block: m^l (in the place of z^l where σ' needs z alone), z^l, z^l after dropout, δ^l."""

    def __init__(self, network: Network, num_rows: int) -> None:
        dtype, sizes = network.layout.dtype, network.layout.sizes
        self.num_rows = num_rows
        self.x = np.empty((num_rows, sizes[0]), dtype)
        self.y = np.empty((num_rows, sizes[-1]), dtype)
        self.m = [np.empty((num_rows, n), dtype) for n in sizes[1:]]
        last = len(self.m) - 1
        self.z = [
            m if activation.in_place and i < last else np.empty_like(m)
            for i, (m, activation) in enumerate(zip(self.m, network.activations, strict=True))
        ]
        self.d = [np.empty_like(m) for m in self.m]
        self.keep = [np.empty_like(m) if p else m for m, p in zip(self.m, network.dropouts, strict=True)]
        self.dropped = [np.empty_like(z) if p else z for z, p in zip(self.z, network.dropouts, strict=True)]


Metric = Callable[[Array, Array], Array]


def metric_from_spec(spec: job_pb2.JobSpec) -> Metric:
    """Return the metric of a row: right answers where the last layer tells classes apart, else squared errors."""
    if spec.network.layers[-1].activation == job_pb2.ACTIVATION_SOFTMAX:
        return lambda z, y: z.argmax(axis=1) == y.argmax(axis=1)
    if spec.loss == job_pb2.LOSS_BINARY_CROSS_ENTROPY:
        return lambda z, y: ((z >= 0.5) == (y >= 0.5)).mean(axis=1)
    return lambda z, y: np.add.reduce((z - y) * (z - y), axis=1)


def _sums(w: Array | None, q: Array, metric: Array) -> Sums:
    q, metric = q.astype(np.float64), metric.astype(np.float64)
    if w is None:
        return Sums(float(len(q)), float(np.add.reduce(q)), float(np.add.reduce(metric)))
    return Sums(float(np.add.reduce(w)), float(np.add.reduce(q * w)), float(np.add.reduce(metric * w)))


def _blocks(num_rows: int) -> Iterator[tuple[int, int]]:
    return ((lo, min(lo + BLOCK_ROWS, num_rows)) for lo in range(0, num_rows, BLOCK_ROWS))
