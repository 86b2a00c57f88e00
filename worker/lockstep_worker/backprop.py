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

Backward, for l = L..3 (the text's (15) and (22)):
    d = matmul(δ^l, W^l.T);  d * k^{l-1} where layer l - 1 has dropout;  δ^{l-1} = d through σ^{l-1}'
Then for l = 2..L, since the next step begins with layer 2 (the text's (17), whose outer product is the other way round
than it must be for W^l of shape (n_{l-1}, n_l)), with what went on from layer l - 1, so after dropout, as z:
    ΔW^l = matmul(z.T, δ^l);  Δb^l = add.reduce(δ^l, axis=0)          .T is a view, never a copy

Blocks. ΔW^l and Δb^l of the first block are the value; those of every later one are computed apart and added to it.

Sums of a block, in float64, to which q and the metric are cast first: weight = add.reduce(w), loss = add.reduce(q * w),
metric = add.reduce(metric * w); without sample weights N, add.reduce(q), add.reduce(metric). Blocks are added in order.
The metric of a row: softmax in the last layer: argmax(ŷ) == argmax(Y); else binary_cross_entropy: the number of units
with (ŷ >= 0.5) == (Y >= 0.5), divided by n_L; else add.reduce(r * r, axis=1).

A shard without rows in the step gives +0.0 everywhere. Nothing here divides by the weight: the server does, once.

Stacking. The blocks of several shards may lie one below the other in z^l, m^l and d, and go through the functions, and
through the products with W^l and W^l.T, together. This changes no bits, and is done only where that was proved:
before a stack shape is first used, lockstep_worker.stacking compares these products, for the shapes of every layer,
with those shard by shard, and the functions that are not correctly rounded at every place of an array; if anything
differs, shards of that shape go one by one. The comparison is of random numbers, so it is strong evidence, and not a
proof from the source of BLAS; shards whose rows in the step are no multiple of 16, where a difference could hide in an
edge, are never stacked. Dropout, ΔW^l, Δb^l and the sums stay apart for each shard.

Bands. matmul(z.T, δ^l) may be computed as several products of some columns of z each, where the same kind of comparison
(lockstep_worker.bands) has found no difference.

With wire_dtype = bfloat16, W^l and b^l of a step are the server's rounded to bfloat16, and ΔW^l and Δb^l of a shard,
when its last block has been added, are rounded, as is every sum of two nodes; an evaluation takes W^l and b^l as they
are (lockstep_proto.bfloat16).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, tree
from lockstep_proto.codec import Sums
from lockstep_proto.v1 import job_pb2
from lockstep_worker.bands import Bands
from lockstep_worker.batches import Batch, Inputs, inputs
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
CACHED_ELEMENTS = 1 << 16  # of the gradients of stacked shards that are computed by one call before they are added


@dataclass(slots=True)
class _Rows:
    """Rows in a block: of each of some batches equally many, and how many layers they have gone through."""

    batches: Sequence[Batch]
    block: Block
    inputs: Inputs
    num_layers: int = 0


class Backprop:
    """Computes gradients in one thread, in arrays that it keeps."""

    def __init__(self, network: Network, loss: Loss, metric: Metric, bands: Bands) -> None:
        self._network = network
        self._layout = network.layout
        self._bands = bands
        self._loss = loss
        self._metric = metric
        self._workspace = Workspace(network, loss.fused)
        self._ahead: _Rows | None = None
        self._rights: list[Array] = []  # by depth in the tree, each as large as the largest product

    @classmethod
    def from_spec(cls, spec: job_pb2.JobSpec, network: Network, bands: Bands | None = None) -> "Backprop":
        """Return the computation of a job. Without `bands` each layer is one."""
        return cls(network, loss_from_spec(spec), metric_from_spec(spec), bands or Bands(network.layout))

    def gradient(self, parameters: Views, batch: Batch, out: Array, band_done: Callable[[int, Sums], None]) -> Sums:
        """Compute the sums of ΔW^l and Δb^l over the rows into `out`, flat; return weight, loss and metric.

        As soon as a band is final, in order, `band_done(its number, sums)` is called.
        """
        if batch.num_rows == 0:
            out.fill(0)
            for band in range(len(self._bands.slices)):
                band_done(band, _NO_ROWS)
            return _NO_ROWS
        streams = [self._dropout_streams(batch)]
        sums = _NO_ROWS
        for lo, hi in _blocks(batch.num_rows):
            rows = self._rows((batch,), lo, hi)
            sums = sums.plus(*self._forward(rows, parameters, streams))
            self._errors(rows, parameters)
            block = rows.block
            for i in range(len(parameters)):
                z = block.dropped[i - 1] if i > 0 else rows.inputs[0]
                for product in self._bands.products(i, hi - lo):
                    part = self._part(out, i, product.rows)
                    into = part if lo == 0 else self._right(0, part.size)
                    _gradient_rows(z[:, product.rows], block.d[i], into)
                    if lo > 0:
                        np.add(part, into, out=part)
                    if hi == batch.num_rows:
                        for band in product.bands:
                            band_done(band, sums)
        return sums

    def node(
        self, parameters: Views, batches: Sequence[Batch], out: Array, *, rounds: bool
    ) -> Iterator[tuple[int, Sums]]:
        """Compute the value of a node into `out`, flat, its shards stacked. Yield each band as it is final, and sums.

        `batches`, of its shards in order, must have equally many rows, of one block at most. `rounds`: whether values
        are rounded to bfloat16.
        """
        num_rows = batches[0].num_rows
        rows = self._rows(batches, 0, num_rows)
        streams = [self._dropout_streams(batch) for batch in batches]
        sums = _tree_sum(self._forward(rows, parameters, streams))
        self._errors(rows, parameters)
        block = rows.block
        for i in range(len(parameters)):
            z = block.dropped[i - 1] if i > 0 else rows.inputs[0]
            for product in self._bands.products(i, num_rows, len(batches)):
                self._node_rows(z[:, product.rows], block.d[i], num_rows, self._part(out, i, product.rows), rounds)
                for band in product.bands:
                    yield band, sums

    def _node_rows(self, z: Array, d: Array, rows: int, out: Array, rounds: bool, depth: int = 0) -> None:
        """Sum some rows of a layer's gradient along the tree: each right child is added while it is in cache."""
        num_shards = len(d) // rows
        if num_shards == 1:
            _gradient_rows(z, d, out)
        elif num_shards * out.size <= CACHED_ELEMENTS:
            values = self._right(depth, num_shards * out.size).reshape(num_shards, out.size)
            _stacked_gradient_rows(z, d, values)
            out[...] = _tree_total(values, rounds)
            return
        else:
            middle = tree.split(0, num_shards) * rows
            right = self._right(depth, out.size)
            self._node_rows(z[:middle], d[:middle], rows, out, rounds, depth + 1)
            self._node_rows(z[middle:], d[middle:], rows, right, rounds, depth + 1)
            np.add(out, right, out=out)
        if rounds:
            bfloat16.round_in_place(out)

    def _part(self, flat: Array, i: int, rows: slice) -> Array:
        """Return some rows of ΔW^l in a flat vector, and Δb^l if they are the last ones."""
        layer, n_in, n_out = self._layout.layer_slices[i], *self._layout.sizes[i : i + 2]
        stop = layer.stop if rows.stop == n_in else layer.start + rows.stop * n_out
        return flat[layer.start + rows.start * n_out : stop]

    def _right(self, depth: int, size: int) -> Array:
        """Return room for what is added, a right child or a further block."""
        if depth == len(self._rights):
            self._rights.append(np.empty(0, self._layout.dtype))
        if self._rights[depth].size < size:
            self._rights[depth] = np.empty(size, self._layout.dtype)
        return self._rights[depth][:size]

    def evaluate(self, parameters: Views, shard: Shard) -> Sums:
        """Return weight, loss and metric of all rows of a shard, without dropout."""
        batch, sums = Batch(shard, None), _NO_ROWS
        for lo, hi in _blocks(shard.num_rows):
            sums = sums.plus(*self._forward(self._rows((batch,), lo, hi), parameters, [None]))
        return sums

    def take_ahead(self, batches: Sequence[Batch]) -> None:
        """Take the rows that `gradient` or `node` will most likely be asked for next, of one block at most each."""
        num_rows = batches[0].num_rows if batches else 0
        self._ahead = self._rows(batches, 0, num_rows) if 0 < num_rows <= BLOCK_ROWS else None

    @property
    def has_rows_ahead(self) -> bool:
        """Whether rows were taken that nothing was asked of yet."""
        return self._ahead is not None

    def prepare(self, parameters: Views, layers: range) -> None:
        """Let the rows taken ahead go through some layers, the first ones (0 is layer 2) or those that follow on them.

        Unless `forget` is called before, the next `gradient` or `node` must have the same parameters.
        """
        rows = self._ahead
        if rows is not None and layers.start <= rows.num_layers:
            streams = [self._dropout_streams(batch) for batch in rows.batches]
            self._go_through(rows, parameters, layers, streams)
            rows.num_layers = layers.stop

    def forget(self) -> None:
        """Let them begin again."""
        if self._ahead is not None:
            self._ahead.num_layers = 0

    def _rows(self, batches: Sequence[Batch], lo: int, hi: int) -> _Rows:
        """Take some rows of each batch. What was taken ahead is good for once."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and len(ahead.batches) == len(batches) and all(map(is_, ahead.batches, batches)):
            return ahead
        block = self._workspace.block((hi - lo) * len(batches))
        return _Rows(batches, block, inputs(block, batches, lo, hi))

    def _forward(self, rows: _Rows, parameters: Views, streams: Sequence[Streams | None]) -> list[Sums]:
        """Fill the block with m^l, z^l, and ∂Q/∂ŷ (δ^L if the loss is fused); return the sums of each shard in it.

        There are as many shards, of equally many rows, as there are `streams`, each None where nothing is dropped.
        """
        last = len(parameters) - 1
        self._go_through(rows, parameters, range(rows.num_layers, last + 1), streams)
        block, (_, y, w), z = rows.block, rows.inputs, rows.block.z[last]
        q = self._loss.rows(block.m[last], z, y, block.d[last], block.t[last])  # (N,)
        return _sums(w, q, self._metric(z, y, block.t[last]), len(streams))

    def _go_through(self, rows: _Rows, parameters: Views, layers: range, streams: Sequence[Streams | None]) -> None:
        """Fill the block with m^l and z^l of some layers."""
        block, last = rows.block, len(parameters) - 1
        for i in layers:
            z = _outputs(block, streams)[i - 1] if i > 0 else rows.inputs[0]
            weights, biases = parameters[i]
            np.matmul(z, weights, out=block.m[i])  # (N, n_l)
            block.m[i] += biases
            if i < last or not self._loss.fused:
                self._network.activations[i].forward(block.m[i], block.z[i], block.t[i])
            if streams[0] is not None and block.keep[i] is not None:
                self._drop(block, i, streams)

    def _errors(self, rows: _Rows, parameters: Views) -> None:
        """Turn ∂Q/∂ŷ into δ^L, and write δ of all layers before it."""
        block, w = rows.block, rows.inputs[2]
        d = block.d[-1]
        if not self._loss.fused:
            self._error(block, len(parameters) - 1)
        if w is not None:
            d *= w.astype(d.dtype)[:, None]
        for i in range(len(parameters) - 1, 0, -1):
            before, keep = block.d[i - 1], block.keep[i - 1]
            np.matmul(block.d[i], parameters[i][0].T, out=before)  # (N, n_{l-1})
            if keep is not None:
                before *= keep
            self._error(block, i - 1)

    def _error(self, block: Block, i: int) -> None:
        """Turn ∂Q/∂z of a layer into δ."""
        self._network.activations[i].backward(block.d[i], block.m[i], block.s[i], block.t[i])

    def _drop(self, block: Block, i: int, streams: Sequence[Streams | None]) -> None:
        p, u, keep = self._network.dropouts[i], block.u[i], block.keep[i]
        assert keep is not None
        rows = len(u) // len(streams)
        for lo, of_shard in zip(range(0, len(u), rows), streams, strict=True):
            assert of_shard is not None
            stream = of_shard[i]
            assert stream is not None
            stream.random(dtype=np.float32, out=u[lo : lo + rows])
        np.greater_equal(u, p, out=keep)
        keep *= 1.0 / (1.0 - p)
        np.multiply(block.z[i], keep, out=block.dropped[i])

    def _dropout_streams(self, batch: Batch) -> Streams | None:
        if not any(self._network.dropouts):
            return None
        return [
            dropout_stream(batch.seed, batch.step, batch.shard_index, i + 2) if p else None
            for i, p in enumerate(self._network.dropouts)
        ]


def _outputs(block: Block, streams: Sequence[Streams | None]) -> list[Array]:
    """Return what goes on from each layer."""
    return block.z if streams[0] is None else block.dropped


def _gradient_rows(z: Array, d: Array, out: Array) -> None:
    """Fill `out` with some rows of ΔW^l, those of some columns of z, and with Δb^l if there is room for it."""
    weights = out[: z.shape[1] * d.shape[1]]
    np.matmul(z.T, d, out=weights.reshape(z.shape[1], d.shape[1]))  # (rows of n_{l-1}, n_l)
    if weights.size < out.size:
        np.add.reduce(d, axis=0, out=out[weights.size :])  # (n_l,)


def _stacked_gradient_rows(z: Array, d: Array, out: Array) -> None:
    """Do the same for shards of equally many rows, each of which has a row of `out`."""
    n, n_in, n_out = len(out), z.shape[1], d.shape[1]
    z, d = z.reshape(n, -1, n_in), d.reshape(n, -1, n_out)  # (shards, N, n_l)
    weights = out[:, : n_in * n_out].reshape(n, n_in, n_out)
    np.matmul(z.transpose(0, 2, 1), d, out=weights)  # (shards, rows of n_{l-1}, n_l)
    if weights.size < out.size:
        np.add.reduce(d, axis=1, out=out[:, n_in * n_out :])  # (shards, n_l)


def _tree_total(values: Array, rounds: bool) -> Array:
    """Sum rows along the tree, in place. Return the first one, which has the sum."""
    total: Array = values[0]
    if len(values) > 1:
        middle = tree.split(0, len(values))
        np.add(_tree_total(values[:middle], rounds), _tree_total(values[middle:], rounds), out=total)
    if rounds:
        bfloat16.round_in_place(total)
    return total


def _tree_sum(sums: Sequence[Sums]) -> Sums:
    if len(sums) == 1:
        return sums[0]
    middle = tree.split(0, len(sums))
    return _tree_sum(sums[:middle]).plus(_tree_sum(sums[middle:]))


def _sums(w: Array | None, q: Array, metric: Array, num_shards: int) -> list[Sums]:
    """Return weight, loss and metric of each of some shards of equally many rows."""
    q, metric = q.astype(np.float64), metric.astype(np.float64)
    if w is not None:
        q, metric = q * w, metric * w
    weights = [len(q) / num_shards] * num_shards if w is None else _of_each(w, num_shards)
    return list(map(Sums, weights, _of_each(q, num_shards), _of_each(metric, num_shards)))


def _of_each(values: Array, num_shards: int) -> list[float]:
    """Sum the values of each shard's rows."""
    sums: list[float] = np.add.reduce(values.reshape(num_shards, -1), axis=1).tolist()
    return sums


def _blocks(num_rows: int) -> Iterator[tuple[int, int]]:
    return ((lo, min(lo + BLOCK_ROWS, num_rows)) for lo in range(0, num_rows, BLOCK_ROWS))
