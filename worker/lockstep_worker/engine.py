"""Computes the nodes of a task: in each thread a shard, or shards of a node stacked; as many threads as it has CPUs."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, codec, failpoints, tree
from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.layout import Chunking
from lockstep_proto.tree import Node
from lockstep_proto.v1 import job_pb2, training_pb2
from lockstep_worker import stacking
from lockstep_worker.backprop import Backprop, Batch
from lockstep_worker.bands import Bands
from lockstep_worker.following import Task
from lockstep_worker.network import Network
from lockstep_worker.node_sums import Emit, Gradient, NodeSums
from lockstep_worker.order import shard_order
from lockstep_worker.shard import Shard

Array = npt.NDArray[Any]
Item = TypeVar("Item")
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
        self._rows_per_shard = None if spec.batch_size.full else spec.batch_size.rows // spec.shards
        self._pool = ThreadPoolExecutor(num_cpus - 1) if num_cpus > 1 else None
        chunking = Chunking(layout.num_parameters, chunk_elements)
        bands = Bands(layout, chunking)
        self._backprops = [Backprop.from_spec(spec, self._network, bands) for _ in range(num_cpus)]
        self._node_sums = NodeSums(layout, bands.slices, chunking, spec.shards, rounds=self._rounds)
        self._training: Mapping[int, Shard] = _Lazy(training)
        self._validation: Mapping[int, Shard] = _Lazy(validation)
        self._orders: dict[int, tuple[int, Array]] = {}  # shard -> (epoch, order)

    def answer(
        self, task: Task, parameters: Array, send: Callable[[bytes], None], superseded: Callable[[], bool]
    ) -> None:
        """Compute a task, and send each message that comes of it, encoded. Threads may call `send` at the same time."""
        computation = self.begin(task, parameters, send, superseded)
        mine, *others = computation.shares
        futures = [self._pool.submit(_go_through, share) for share in others] if self._pool else []
        _go_through(mine)
        for future in futures:
            future.result()
        computation.finish()

    def begin(
        self, task: Task, parameters: Array, send: Callable[[bytes], None], superseded: Callable[[], bool]
    ) -> "Computation":
        """Begin a task. Between shards, or bands of stacked ones, it is left off if superseded: others did it."""
        started = time.perf_counter()
        views = self._layout.views(parameters)

        def emit(node: Node, chunk_index: int, sums: Sums, values: Array) -> None:
            if self._rounds:
                values = bfloat16.pack(values)
            data = values.data if values.size else _NOTHING
            compute_s = time.perf_counter() - started
            chunk = NodeChunk(task.attempt, task.version, node, chunk_index, sums, compute_s, data)
            send(codec.encode_node_chunk(chunk))

        if task.kind == training_pb2.WORK_KIND_EXAMINE:
            return self._examine(task, views, send, superseded)
        if task.kind == training_pb2.WORK_KIND_EVALUATE:
            return self._evaluate(task, views, emit, _Handout(_shards(task), superseded))
        self._node_sums.begin(task.ranges, emit)
        nodes = _Handout(self._nodes(task), superseded)
        return Computation([self._gradients(task, views, nodes, superseded, each) for each in self._backprops])

    def _nodes(self, task: Task) -> list[Node]:
        """Cut the task into nodes, at most a thread's part each and small enough to be stacked by the batch's rows."""
        most = 1
        if self._rows_per_shard is not None:
            most = max(1, stacking.MOST_ROWS // self._rows_per_shard)
            most = min(most, -(-len(_shards(task)) // len(self._backprops)))

        def cut(node: Node) -> list[Node]:
            if node[1] - node[0] <= most:
                return [node]
            middle = tree.split(*node)
            return [*cut((node[0], middle)), *cut((middle, node[1]))]

        tops = [node for lo, hi in task.ranges for node in tree.top_nodes(lo, hi, self._spec.shards)]
        return [part for node in tops for part in cut(node)]

    def _gradients(
        self, task: Task, views: Any, nodes: Iterator[Node], superseded: Callable[[], bool], backprop: Backprop
    ) -> Iterator[None]:
        for node in nodes:
            batches = [self._batch(task, shard) for shard in range(*node)]
            if self._stacks([batch.num_rows for batch in batches]):
                gradient = self._buffer()
                for band, sums in backprop.node(views, batches, gradient.views, rounds=self._rounds):
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

    def _stacks(self, rows: list[int]) -> bool:
        """Whether shards of so many rows are computed stacked."""
        alike = len(rows) > 1 and 0 < rows[0] == min(rows) == max(rows) <= stacking.MOST_ROWS // len(rows)
        return alike and stacking.keeps_bits(self._layout.sizes, self._layout.dtype, len(rows), rows[0])

    def _shard_gradient(self, views: Any, shard: int, batch: Batch, backprop: Backprop) -> None:
        gradient = self._buffer()

        def band_done(band: int, sums: Sums) -> None:
            self._band_done((shard, shard + 1), band, gradient, sums)

        backprop.gradient(views, batch, gradient.views, band_done)

    def _buffer(self) -> Gradient:
        failpoints.hit("worker.shard")
        return self._node_sums.buffer()

    def _band_done(self, node: Node, band: int, gradient: Gradient, sums: Sums) -> None:
        failpoints.hit("worker.layer")
        self._node_sums.band_done(node, band, gradient, sums)

    def _evaluate(self, task: Task, views: Any, emit: Emit, shards: Iterator[int]) -> "Computation":
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
        self, task: Task, views: Any, send: Callable[[bytes], None], superseded: Callable[[], bool]
    ) -> "Computation":
        """Find the first shard of a step whose loss or gradient is not finite."""
        found: dict[int, int] = {}  # shard -> layer, 0 for the loss
        shards = _Handout(sorted(_shards(task)), lambda: bool(found) or superseded())  # the lower ones are under way

        def share(backprop: Backprop) -> Iterator[None]:
            gradient = Gradient(self._layout)
            for shard in shards:
                sums = backprop.gradient(views, self._batch(task, shard), gradient.views, lambda *_: None)
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

    def _batch(self, task: Task, shard: int) -> Batch:
        data = self._training[shard]
        rows = None
        if self._rows_per_shard is not None:
            first = task.step_in_epoch * self._rows_per_shard
            rows = self._order(task.epoch, shard, data.num_rows)[first : first + self._rows_per_shard]
        return Batch(data, rows, seed=self._spec.seed, step=task.version, shard_index=shard)

    def _order(self, epoch: int, shard: int, num_rows: int) -> Array:
        known = self._orders.get(shard)
        if known is None or known[0] != epoch:
            known = self._orders[shard] = (epoch, shard_order(self._spec.seed, epoch, shard, num_rows))
        return known[1]


@np.errstate(all="ignore")  # what is not finite is the server's to judge
def _go_through(share: Iterator[None]) -> None:
    for _ in share:
        pass


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


class _Handout(Generic[Item]):
    """Gives each shard, or node, to one of several threads, until the task is superseded."""

    def __init__(self, items: list[Item], superseded: Callable[[], bool]) -> None:
        self._items = iter(items)
        self._superseded = superseded
        self._lock = Lock()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._superseded():
            raise StopIteration
        with self._lock:
            return next(self._items)


class _Lazy(dict[int, Shard]):
    """Shards by number, fetched once."""

    def __init__(self, fetch: Callable[[int], Shard]) -> None:
        super().__init__()
        self._fetch = fetch

    def __missing__(self, shard: int) -> Shard:
        self[shard] = self._fetch(shard)
        return self[shard]


def _sum(node: Node, leaves: dict[Node, Sums]) -> Sums | None:
    """Sum the leaves of a node along the tree; None if one is missing because the task was superseded."""
    if node[1] - node[0] == 1:
        return leaves.get(node)
    middle = tree.split(*node)
    left, right = _sum((node[0], middle), leaves), _sum((middle, node[1]), leaves)
    return left.plus(right) if left is not None and right is not None else None
