"""The rows that a step takes of a job's shards, and those of the next step, taken while the server works."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.tree import Node
from lockstep_proto.v1 import job_pb2
from lockstep_worker.following import Task
from lockstep_worker.order import shard_order
from lockstep_worker.shard import Shard
from lockstep_worker.workspace import Block, InputRows

Array = npt.NDArray[Any]
Inputs = tuple[Array, Array, Array | None]  # X, Y and w


@dataclass(frozen=True, eq=False)
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


class Batches:
    """The batches of one job. `training` gives the shards by their number; they are asked for when first needed."""

    def __init__(self, spec: job_pb2.JobSpec, training: Callable[[int], Shard]) -> None:
        self.rows_per_shard = None if spec.batch_size.full else spec.batch_size.rows // spec.shards
        self._seed = spec.seed
        self._training: Mapping[int, Shard] = Lazy(training)
        self._orders: dict[int, tuple[int, Array]] = {}  # shard -> (epoch, order)
        self._ahead: dict[tuple[int, int, int, Node], list[Batch]] = {}

    def of(self, task: Task, node: Node) -> list[Batch]:
        """Return what a step takes of the shards of a node."""
        found = self._ahead.pop((task.version, task.epoch, task.step_in_epoch, node), None)
        return found or self._make(task.version, task.epoch, task.step_in_epoch, node)

    def ahead(self, task: Task, nodes: Sequence[Node]) -> list[list[Batch]]:
        """Return what the step after a task's most likely takes of some nodes, and keep it until then."""
        version, epoch, step = task.version + 1, task.epoch, task.step_in_epoch + 1
        found = [self._make(version, epoch, step, node) for node in nodes]
        if not any(batch.num_rows for batches in found for batch in batches):
            epoch, step = epoch + 1, 0
            found = [self._make(version, epoch, step, node) for node in nodes]
        self._ahead = {(version, epoch, step, node): batches for node, batches in zip(nodes, found, strict=True)}
        return found

    def _make(self, version: int, epoch: int, step_in_epoch: int, node: Node) -> list[Batch]:
        batches = []
        for index in range(*node):
            shard, rows = self._training[index], None
            if self.rows_per_shard is not None:
                first = step_in_epoch * self.rows_per_shard
                rows = self._order(epoch, index, shard.num_rows)[first : first + self.rows_per_shard]
            batches.append(Batch(shard, rows, self._seed, version, index))
        return batches

    def _order(self, epoch: int, shard: int, num_rows: int) -> Array:
        known = self._orders.get(shard)
        if known is None or known[0] != epoch:
            known = self._orders[shard] = (epoch, shard_order(self._seed, epoch, shard, num_rows))
        return known[1]


class Lazy(dict[int, Shard]):
    """Shards by number, fetched once."""

    def __init__(self, fetch: Callable[[int], Shard]) -> None:
        super().__init__()
        self._fetch = fetch

    def __missing__(self, shard: int) -> Shard:
        """Fetch it."""
        self[shard] = self._fetch(shard)
        return self[shard]


def inputs(block: Block, batches: Sequence[Batch], lo: int, hi: int) -> Inputs:
    """Return X, Y and w of rows lo to hi of each of some batches, one below the other."""
    if len(batches) == 1:
        return _gather(block, batches[0], lo, hi)
    parts = block.parts(len(batches))
    return _stack(block, parts, [_gather(part, batch, lo, hi) for part, batch in zip(parts, batches, strict=True)])


def _gather(block: Block | InputRows, batch: Batch, lo: int, hi: int) -> Inputs:
    """Return X, Y and w of some rows; without a copy where they are whole ranges of the shard."""
    shard = batch.shard
    if batch.rows is None:
        x, y = shard.x[lo:hi], shard.y[lo:hi]
        w = None if shard.weight is None else shard.weight[lo:hi]
    else:
        rows = batch.rows[lo:hi]
        # mode "clip": with "raise" numpy would write to `out` through a copy
        x = shard.x.take(rows, axis=0, out=block.x, mode="clip")
        y = shard.y[rows] if shard.y.ndim == 1 else shard.y.take(rows, axis=0, out=block.y, mode="clip")
        w = None if shard.weight is None else shard.weight[rows]
    return x, y if y.ndim == 2 else _one_hot(block, y), w


def _one_hot(block: Block | InputRows, labels: Array) -> Array:
    block.y.fill(0)
    block.y[block.index, labels] = 1
    return block.y


def _stack(block: Block, parts: Sequence[InputRows], gathered: Sequence[Inputs]) -> Inputs:
    """Return X, Y and w of shards whose rows are one below the other in a block, or are brought there."""
    for part, (x, y, _) in zip(parts, gathered, strict=True):
        for source, place in ((x, part.x), (y, part.y)):
            if source is not place:
                place[...] = source
    weights = [w for _, _, w in gathered if w is not None]
    return block.x, block.y, np.concatenate(weights) if weights else None
