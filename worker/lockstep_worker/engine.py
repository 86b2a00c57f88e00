"""Computes the nodes of a task: in each thread a shard, or shards of a node stacked; as many threads as it has CPUs."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, codec, failpoints, tree
from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.layout import Chunking
from lockstep_proto.tree import Node
from lockstep_proto.v1 import job_pb2, training_pb2
from lockstep_worker import shares, stacking
from lockstep_worker.backprop import Backprop, Views
from lockstep_worker.bands import Bands
from lockstep_worker.batches import Batch, Batches, Lazy
from lockstep_worker.following import Front, Task
from lockstep_worker.network import Network
from lockstep_worker.node_sums import Emit, Gradient, NodeSums
from lockstep_worker.shard import Shard
from lockstep_worker.shares import Parts, Supply

Array = npt.NDArray[Any]
Encode = Callable[[NodeChunk], bytes]  # threads may call it at the same time
_NUM_VERSIONS = 3  # that a worker has arrays of its own for
_NOTHING = memoryview(b"")


@dataclass(frozen=True)
class Computation:
    """A task under way.

    Each share is gone through in a thread of its own, by shards, or by the bands of stacked ones; then, `finish`.
    """

    shares: list[Iterator[None]]
    finish: Callable[[], None] = lambda: None


class Engine:
    """The computation of one job on one worker.

    `training` and `validation` give the shards by their number; they are asked for when they are first needed.
    """

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        chunk_elements: int,
        *,
        training: Callable[[int], Shard],
        validation: Callable[[int], Shard],
        num_cpus: int,
    ) -> None:
        self._spec = spec
        self._rounds = bfloat16.travels(spec)
        self._network = Network.from_spec(spec)
        layout = self._layout = self._network.layout
        self._batches = Batches(spec, training)
        self._pool = ThreadPoolExecutor(num_cpus - 1) if num_cpus > 1 else None
        chunking = Chunking(layout.num_parameters, chunk_elements)
        bands = Bands(layout, chunking)
        self._backprops = [Backprop.from_spec(spec, self._network, bands) for _ in range(num_cpus)]
        self._node_sums = NodeSums(layout, bands.slices, chunking, spec.shards, rounds=self._rounds)
        self._validation: Mapping[int, Shard] = Lazy(validation)
        self._known: deque[tuple[Array, Views]] = deque(maxlen=_NUM_VERSIONS)

    def answer(
        self,
        task: Task,
        parameters: Array,
        send: Callable[[bytes], None],
        superseded: Callable[[], bool],
        encode: Encode = codec.encode_node_chunk,
    ) -> None:
        """Compute a task, and send each message that comes of it, encoded. Threads may call `send` at the same time."""
        computation = self.begin(task, parameters, send, superseded, encode)
        self._side_by_side([partial(_go_through, share) for share in computation.shares])
        computation.finish()

    def prepare(self, front: Front) -> None:
        """Begin the step that most likely comes next with the layers that have come of its parameters."""
        views = self._views_of(front.parameters)
        ahead = [backprop for backprop in self._backprops if backprop.has_rows_ahead]
        self._side_by_side([partial(_prepare, backprop, views, front.layers) for backprop in ahead])

    def forget(self) -> None:
        """Take note that what was prepared is not of the version that is computed from next."""
        for backprop in self._backprops:
            backprop.forget()

    def _side_by_side(self, shares: list[Callable[[], None]]) -> None:
        """Do these, the first one in this thread, and each of the others in one of its own."""
        mine, others = shares[:1], shares[1:]
        futures = [self._pool.submit(share) for share in others] if self._pool else []
        for share in mine:
            share()
        for future in futures:
            future.result()

    def begin(
        self,
        task: Task,
        parameters: Array,
        send: Callable[[bytes], None],
        superseded: Callable[[], bool],
        encode: Encode = codec.encode_node_chunk,
    ) -> "Computation":
        """Begin a task. Between shards, or bands of stacked ones, it is left off if superseded: others did it."""
        started = time.perf_counter()
        views = self._views_of(parameters)

        def emit(node: Node, chunk_index: int, sums: Sums, values: Array) -> None:
            if self._rounds:
                values = bfloat16.pack(values)
            data = values.data if values.size else _NOTHING
            compute_s = time.perf_counter() - started
            send(encode(NodeChunk(task.attempt, task.version, node, chunk_index, sums, compute_s, data)))

        if task.kind == training_pb2.WORK_KIND_EXAMINE:
            return self._examine(task, views, send, superseded)
        if task.kind == training_pb2.WORK_KIND_EVALUATE:
            return self._evaluate(task, views, emit, Supply(_shards(task), superseded))
        parts = self._parts(task)
        self._node_sums.begin(parts.tops, emit)
        others = Supply(parts.others, superseded)
        return Computation(
            [
                self._gradients(task, views, others.after(first), superseded, backprop)
                for first, backprop in zip(parts.firsts, self._backprops, strict=False)
            ],
            partial(self._take_ahead, task, superseded),
        )

    def _parts(self, task: Task) -> Parts:
        rows, size = self._batches.rows_per_shard, self._layout.num_parameters
        return shares.parts(task.ranges, self._spec.shards, rows, size, len(self._backprops))

    def _take_ahead(self, task: Task, superseded: Callable[[], bool]) -> None:
        """Take the rows of the step that most likely comes next, while the server works."""
        known = self._batches.rows_per_shard is not None and not superseded()
        ahead = self._batches.ahead(task, self._parts(task).firsts) if known else []
        none = [list[Batch]()] * (len(self._backprops) - len(ahead))
        for backprop, batches in zip(self._backprops, [*ahead, *none], strict=True):
            backprop.take_ahead(batches if self._stacks(batches) else batches[:1])

    def _views_of(self, parameters: Array) -> Views:
        """Return the views into a version. Those into one of the few arrays that versions take turns in are kept."""
        if not parameters.flags.owndata:  # the server's memory: it is let go as soon as nobody refers to it
            return self._layout.views(parameters)
        for known, views in self._known:
            if known is parameters:
                return views
        views = self._layout.views(parameters)
        self._known.append((parameters, views))
        return views

    def _gradients(
        self, task: Task, views: Views, nodes: Iterator[Node], superseded: Callable[[], bool], backprop: Backprop
    ) -> Iterator[None]:
        for node in nodes:
            batches = self._batches.of(task, node)
            if self._stacks(batches):
                gradient = self._buffer()
                for band, sums in backprop.node(views, batches, gradient.flat, rounds=self._rounds):
                    if superseded():
                        return
                    self._band_done(node, band, gradient, sums)
                    yield
                continue
            for shard, batch in zip(range(*node), batches, strict=True):
                if shard > node[0] and superseded():
                    return
                self._shard_gradient(views, shard, batch, backprop)
                yield

    def _stacks(self, batches: list[Batch]) -> bool:
        """Whether these shards are computed stacked."""
        rows = [batch.num_rows for batch in batches]
        alike = len(rows) > 1 and 0 < rows[0] == min(rows) == max(rows) <= stacking.MOST_ROWS // len(rows)
        return alike and stacking.keeps_bits(self._layout.sizes, self._layout.dtype, len(rows), rows[0])

    def _shard_gradient(self, views: Views, shard: int, batch: Batch, backprop: Backprop) -> None:
        gradient = self._buffer()

        def band_done(band: int, sums: Sums) -> None:
            self._band_done((shard, shard + 1), band, gradient, sums)

        backprop.gradient(views, batch, gradient.flat, band_done)

    def _buffer(self) -> Gradient:
        failpoints.hit("worker.shard")
        return self._node_sums.buffer()

    def _band_done(self, node: Node, band: int, gradient: Gradient, sums: Sums) -> None:
        failpoints.hit("worker.layer")
        self._node_sums.band_done(node, band, gradient, sums)

    def _evaluate(self, task: Task, views: Views, emit: Emit, shards: Iterator[int]) -> "Computation":
        sums: dict[Node, Sums] = {}

        def share(backprop: Backprop) -> Iterator[None]:
            for shard in shards:
                sums[(shard, shard + 1)] = backprop.evaluate(views, self._validation[shard])
                yield

        def finish() -> None:
            for lo, hi in task.ranges:
                for node in tree.top_nodes(lo, hi, self._spec.shards):
                    total = _sum(node, sums)
                    if total is not None:
                        emit(node, 0, total, np.empty(0, self._layout.dtype))

        return Computation([share(backprop) for backprop in self._backprops], finish)

    def _examine(
        self, task: Task, views: Views, send: Callable[[bytes], None], superseded: Callable[[], bool]
    ) -> "Computation":
        """Find the first shard of a step whose loss or gradient is not finite."""
        found: dict[int, int] = {}  # shard -> layer, 0 for the loss
        # In order: when one is found, all lower ones are under way.
        shards = Supply(sorted(_shards(task)), lambda: bool(found) or superseded())

        def share(backprop: Backprop) -> Iterator[None]:
            gradient = Gradient(self._layout)
            for shard in shards:
                (batch,) = self._batches.of(task, (shard, shard + 1))
                sums = backprop.gradient(views, batch, gradient.flat, lambda *_: None)
                if self._rounds:
                    bfloat16.round_in_place(gradient.flat)
                layer = _first_not_finite(gradient, sums)
                if layer is not None:
                    found[shard] = layer
                yield

        def finish() -> None:
            if not superseded():
                send(_finding(task, found))

        return Computation([share(backprop) for backprop in self._backprops], finish)


@np.errstate(all="ignore")  # what is not finite is the server's to judge
def _go_through(share: Iterator[None]) -> None:
    for _ in share:
        pass


@np.errstate(all="ignore")
def _prepare(backprop: Backprop, views: Views, layers: range) -> None:
    backprop.prepare(views, layers)


def _shards(task: Task) -> list[int]:
    return [shard for lo, hi in task.ranges for shard in range(lo, hi)]


def _finding(task: Task, found: dict[int, int]) -> bytes:
    ranges = [training_pb2.ShardRange(lo=lo, hi=hi) for lo, hi in task.ranges]
    finding = training_pb2.Finding(attempt=task.attempt, step=task.version, ranges=ranges)
    if found:
        finding.shard, finding.layer = min(found.items())
    return training_pb2.WorkerMessage(finding=finding).SerializeToString()


def _first_not_finite(gradient: Gradient, sums: Sums) -> int | None:
    """Return the layer l whose gradient is the first in the backward pass that is not finite, 0 for the loss alone."""
    for i in range(len(gradient.views) - 1, -1, -1):
        if not all(np.isfinite(array).all() for array in gradient.views[i]):
            return i + 2
    return None if np.isfinite(sums.loss) else 0


def _sum(node: Node, leaves: dict[Node, Sums]) -> Sums | None:
    """Sum the leaves of a node along the tree; None if one is missing because the task was superseded."""
    if node[1] - node[0] == 1:
        return leaves.get(node)
    middle = tree.split(*node)
    left, right = _sum((node[0], middle), leaves), _sum((middle, node[1]), leaves)
    return left.plus(right) if left is not None and right is not None else None
