"""Computes the nodes of a task: one shard a thread, as many side by side as the worker has CPUs."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import failpoints, tree
from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.layout import Chunking
from lockstep_proto.tree import Node
from lockstep_proto.v1 import job_pb2
from lockstep_worker.backprop import Backprop, Batch
from lockstep_worker.following import Task
from lockstep_worker.network import Network
from lockstep_worker.node_sums import NodeSums
from lockstep_worker.order import shard_order
from lockstep_worker.shard import Shard

Array = npt.NDArray[Any]
Emit = Callable[[NodeChunk], None]
_NOTHING = memoryview(b"")


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
        self._network = Network.from_spec(spec)
        layout = self._network.layout
        self._rows_per_shard = None if spec.batch_size.full else spec.batch_size.rows // spec.shards
        self._backprops = [Backprop.from_spec(spec, self._network) for _ in range(num_cpus)]
        self._pool = ThreadPoolExecutor(num_cpus - 1) if num_cpus > 1 else None
        chunking = Chunking(layout.num_parameters, chunk_elements)
        self._node_sums = NodeSums(layout, chunking, spec.shards)
        self._training: Mapping[int, Shard] = _Lazy(training)
        self._validation: Mapping[int, Shard] = _Lazy(validation)
        self._orders: dict[int, tuple[int, Array]] = {}  # shard -> (epoch, order)

    def run(self, task: Task, parameters: Array, emit: Emit, superseded: Callable[[], bool]) -> None:
        """Compute a task. Between shards, leave off if it is superseded: then others have done it."""
        started = time.perf_counter()
        views = self._network.layout.views(parameters)

        def send(node: Node, chunk_index: int, sums: Sums, values: Array) -> None:
            data = values.data if values.size else _NOTHING
            emit(NodeChunk(task.attempt, task.version, node, chunk_index, sums, time.perf_counter() - started, data))

        shards = _Handout([shard for lo, hi in task.ranges for shard in range(lo, hi)], superseded)
        if task.evaluate:
            self._evaluate(task, views, shards, send)
        else:
            self._node_sums.begin(task.ranges, send)
            self._side_by_side(lambda backprop: self._gradients(task, views, backprop, shards))

    def _side_by_side(self, work: Callable[[Backprop], None]) -> None:
        """Run `work` on every CPU, the first one in this thread."""

        @np.errstate(all="ignore")  # what is not finite is the server's to judge
        def quietly(backprop: Backprop) -> None:
            work(backprop)

        futures = [self._pool.submit(quietly, backprop) for backprop in self._backprops[1:]] if self._pool else []
        quietly(self._backprops[0])
        for future in futures:
            future.result()

    def _gradients(self, task: Task, views: Any, backprop: Backprop, shards: Iterator[int]) -> None:
        for shard in shards:
            failpoints.hit("worker.shard")
            gradient = self._node_sums.buffer()

            def layer_done(layer: int, sums: Sums, shard: int = shard, gradient: Any = gradient) -> None:
                failpoints.hit("worker.layer")
                self._node_sums.layer_done(shard, layer, gradient, sums)

            backprop.gradient(views, self._batch(task, shard), gradient.views, layer_done)

    def _evaluate(self, task: Task, views: Any, shards: Iterator[int], send: Any) -> None:
        sums: dict[Node, Sums] = {}

        def work(backprop: Backprop) -> None:
            for shard in shards:
                sums[(shard, shard + 1)] = backprop.evaluate(views, self._validation[shard])

        self._side_by_side(work)
        for lo, hi in task.ranges:
            for node in tree.top_nodes(lo, hi, self._spec.shards):
                total = _sum(node, sums)
                if total is not None:
                    send(node, 0, total, np.empty(0))

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


class _Handout:
    """Gives each shard to one of several threads, until the task is superseded."""

    def __init__(self, shards: list[int], superseded: Callable[[], bool]) -> None:
        self._shards = iter(shards)
        self._superseded = superseded
        self._lock = Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._superseded():
            raise StopIteration
        with self._lock:
            return next(self._shards)


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
