"""The rows of files, cut into shards."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.rows import shard_range
from lockstep_proto.v1 import job_pb2
from lockstep_worker.columns import Batch, check_probabilities, fill, fill_labels, fill_weights
from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.formats import DataFile
from lockstep_worker.shard import Shard

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is known of the data before a row is loaded. `num_rows` is None where that takes reading them all."""

    files: tuple[DataFile, ...]
    num_rows: int | None
    features: tuple[str, ...]
    target: tuple[str, ...]
    weight: str
    num_inputs: int
    num_outputs: int
    has_labels: bool
    loss: job_pb2.Loss.ValueType
    dtype: "np.dtype[Any]"
    num_shards: int
    training: bool

    @property
    def num_parts(self) -> int:
        """Tasks that can share the loading with little double work; 1 where a shard cannot be had by itself."""
        if self.num_rows is None:
            return 1
        return min(self.num_shards, sum(file.contents.num_parts for file in self.files))

    @property
    def shard_bytes(self) -> int:
        """Memory of the largest shard; 0 if the number of rows is not known."""
        row_bytes = (self.num_inputs + self.num_outputs) * self.dtype.itemsize + 16
        return -(-(self.num_rows or 0) // self.num_shards) * row_bytes

    def shards(self, lo: int, hi: int) -> Iterator[Shard]:
        """Load the shards lo..hi−1 one after the other, in one pass. Raises DataError for what cannot be used.

        Without a known number of rows, `lo` must be 0: all rows are read before the first shard is there.
        """
        if self.num_rows is None:
            yield from self._read_then_cut(lo, hi)
            return
        first, _ = shard_range(self.num_rows, self.num_shards, lo)
        _, last = shard_range(self.num_rows, self.num_shards, hi - 1)
        rows = _Rows(self._batches(first, last))
        for index in range(lo, hi):
            start, stop = shard_range(self.num_rows, self.num_shards, index)
            shard = self._empty(stop - start)
            at = 0
            for batch, begin, count in rows.take(stop - start):
                self._fill(shard, at, batch, begin, count)
                at += count
            if at < stop - start:
                name = self.files[0].label if len(self.files) == 1 else "the data"
                raise DataError(f"{name}: there are fewer rows than announced; the file is damaged", UNAVAILABLE)
            yield shard

    def _read_then_cut(self, lo: int, hi: int) -> Iterator[Shard]:
        pieces: deque[Shard] = deque()
        for file in self.files:
            for batch in file.batches(self._names, 0, file.contents.num_rows):
                pieces.append(self._empty(batch.num_rows))
                self._fill(pieces[-1], 0, batch, 0, batch.num_rows)
        num_rows = sum(piece.num_rows for piece in pieces)
        check_num_rows(self.files[0].label, num_rows, self.num_shards, training=self.training)
        for index in range(lo, hi):
            start, stop = shard_range(num_rows, self.num_shards, index)
            yield self._joined(pieces, stop - start)

    def _joined(self, pieces: deque[Shard], num_rows: int) -> Shard:
        """Take rows off the front of the pieces, which gives their memory back."""
        shard = self._empty(num_rows)
        at = 0
        while at < num_rows:
            piece = pieces.popleft()
            count = min(piece.num_rows, num_rows - at)
            for into, source in zip(_arrays(shard), _arrays(piece), strict=True):
                into[at : at + count] = source[:count]
            if count < piece.num_rows:
                pieces.appendleft(Shard(*(array[count:] for array in _arrays(piece))))
            at += count
        return shard

    def _batches(self, lo: int, hi: int) -> Iterator[Batch]:
        """Yield the rows [lo, hi) of all files, one after the other."""
        first = 0
        for file in self.files:
            num_rows = file.contents.num_rows
            assert num_rows is not None
            start, stop = max(lo - first, 0), min(hi - first, num_rows)
            if start < stop:
                yield from file.batches(self._names, start, stop)
            first += num_rows

    @property
    def _names(self) -> list[str]:
        return [*self.features, *self.target, *([self.weight] if self.weight else [])]

    def _empty(self, num_rows: int) -> Shard:
        x = np.empty((num_rows, self.num_inputs), self.dtype)
        y = np.empty(num_rows, np.int64) if self.has_labels else np.empty((num_rows, self.num_outputs), self.dtype)
        return Shard(x, y, np.empty(num_rows) if self.weight else None)

    def _fill(self, shard: Shard, at: int, batch: Batch, lo: int, count: int) -> None:
        """Write `count` rows of a batch, from its row `lo` on, to the rows from `at` on of a shard."""
        rows = slice(at, at + count)
        fill(shard.x[rows], batch, self.features, lo)
        if self.has_labels:
            fill_labels(shard.y[rows], batch, self.target[0], self.num_outputs, lo)
        else:
            fill(shard.y[rows], batch, self.target, lo)
            if self.loss in (job_pb2.LOSS_CROSS_ENTROPY, job_pb2.LOSS_BINARY_CROSS_ENTROPY):
                sum_to_1 = self.loss == job_pb2.LOSS_CROSS_ENTROPY
                check_probabilities(shard.y[rows], batch, self.target, lo, sum_to_1=sum_to_1)
        if shard.weight is not None:
            fill_weights(shard.weight[rows], batch, self.weight, lo)


class _Rows:
    """Hands out the rows of batches by number."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._batch: Batch | None = None
        self._used = 0

    def take(self, num_rows: int) -> Iterator[tuple[Batch, int, int]]:
        """Yield (batch, first row in it, how many) that make up the next rows; fewer if there are no more."""
        while num_rows:
            if self._batch is None or self._used == self._batch.num_rows:
                self._batch, self._used = next(self._batches, None), 0
                if self._batch is None:
                    return
            count = min(num_rows, self._batch.num_rows - self._used)
            yield self._batch, self._used, count
            self._used += count
            num_rows -= count


def check_num_rows(label: str, num_rows: int, num_shards: int, *, training: bool) -> None:
    """Raise DataError unless there are rows, and for training at least one a shard."""
    if num_rows == 0:
        raise DataError(f"{label}: there are no rows")
    if training and num_rows < num_shards:
        few = f"has {num_rows} rows, fewer than shards ({num_shards})"
        raise DataError(f"{label}: the training data {few}; set shards to at most {num_rows}")


def _arrays(shard: Shard) -> list[Array]:
    return [array for array in (shard.x, shard.y, shard.weight) if array is not None]
