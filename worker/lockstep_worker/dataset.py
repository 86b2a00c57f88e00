"""The rows of a `Data` message, checked against the job's network and cut into shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.layout import Layout
from lockstep_proto.rows import shard_range
from lockstep_proto.v1 import job_pb2
from lockstep_worker.columns import check_finite, check_weights, class_labels, column_values, unknown
from lockstep_worker.errors import DataError
from lockstep_worker.shard import Shard
from lockstep_worker.sources import DataFile, open_file

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Dataset:
    """What is known of the data before a row is loaded."""

    files: tuple[DataFile, ...]
    features: tuple[str, ...]
    target: tuple[str, ...]
    weight: str
    num_inputs: int
    num_outputs: int
    dtype: "np.dtype[Any]"
    num_shards: int

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(file.num_rows for file in self.files)

    @property
    def can_be_entered(self) -> bool:
        """Whether a shard can be loaded without reading those before it."""
        return all(file.can_be_entered for file in self.files)

    @property
    def is_arrays(self) -> bool:
        """Whether the data are named arrays, not columns."""
        return self.files[0].path.suffix == ".npz"

    def shard(self, index: int) -> Shard:
        """Load one shard. Raises DataError for the first value that cannot be used."""
        lo, hi = shard_range(self.num_rows, self.num_shards, index)
        x = np.empty((hi - lo, self.num_inputs), self.dtype)
        targets: list[Array] = []
        weights: list[Array] = []
        first = 0
        for file in self.files:
            start, stop = max(lo - first, 0), min(hi - first, file.num_rows)
            if start < stop:
                into = x[first + start - lo : first + stop - lo]
                y, weight = (self._arrays if self.is_arrays else self._columns)(file, start, stop, into)
                targets.append(y)
                weights.append(weight)
            first += file.num_rows
        y = np.concatenate(targets) if targets else self._no_targets()
        return Shard(x, np.ascontiguousarray(y), np.concatenate(weights) if self.weight and weights else None)

    def _no_targets(self) -> Array:
        labels = len(self.target) == 1 and self.num_outputs > 1
        return np.empty(0, np.int64) if labels else np.empty((0, self.num_outputs), self.dtype)

    def _columns(self, file: DataFile, lo: int, hi: int, x: Array) -> tuple[Array, Array]:
        """Fill x with the rows [lo, hi) of a table; return target and weights."""
        y = np.empty((hi - lo, len(self.target)), np.float64)
        weight = np.ones(hi - lo)
        wanted = [*self.features, *self.target, *([self.weight] if self.weight else [])]
        if file.path.suffix == ".npy":
            rows = file.array("", lo, hi)
            self._take(rows, file, wanted, lo, x, y, weight)
            return self._target(y, file, lo), weight
        for first, table in file.tables(lo, hi, wanted):
            here = slice(first - lo, first - lo + table.num_rows)
            for into, names in ((x, self.features), (y, self.target)):
                for i, name in enumerate(names):
                    values = column_values(table.column(name), file.label, name, first)
                    check_finite(values, file.label, [name], first)
                    into[here, i] = values
            if self.weight:
                values = column_values(table.column(self.weight), file.label, self.weight, first)
                check_finite(values, file.label, [self.weight], first)
                weight[here] = values
        check_weights(weight, file.label, self.weight, lo)
        return self._target(y, file, lo), weight

    def _take(
        self, rows: Array, file: DataFile, wanted: Sequence[str], first: int, x: Array, y: Array, weight: Array
    ) -> None:
        rows = rows[:, [int(name) for name in wanted]]
        check_finite(rows, file.label, wanted, first)
        n = self.num_inputs
        x[...] = rows[:, :n]
        y[...] = rows[:, n : n + len(self.target)]
        if self.weight:
            weight[...] = rows[:, -1]
            check_weights(weight, file.label, self.weight, first)

    def _arrays(self, file: DataFile, lo: int, hi: int, x: Array) -> tuple[Array, Array]:
        """Fill x with the rows [lo, hi) of named arrays; return target and weights."""
        rows = file.array(self.features[0], lo, hi)
        if rows.ndim != 2 or rows.shape[1] != self.num_inputs:
            raise _wrong_features(file.label, rows.shape[1] if rows.ndim == 2 else 1, self.num_inputs)
        check_finite(rows, file.label, [self.features[0]], lo)
        x[...] = rows
        y = file.array(self.target[0], lo, hi)
        check_finite(y, file.label, [self.target[0]], lo)
        weight = np.ones(hi - lo)
        if self.weight:
            weight = file.array(self.weight, lo, hi).astype(np.float64)
            check_finite(weight, file.label, [self.weight], lo)
            check_weights(weight, file.label, self.weight, lo)
        if y.ndim > 1:
            if y.shape[1:] != (self.num_outputs,):
                shape = f"(rows, {self.num_outputs})"
                raise DataError(
                    f"{file.label}: {self.target[0]!r} must have shape {shape}, got {(file.num_rows, *y.shape[1:])}"
                )
            return y.astype(self.dtype), weight
        return self._target(y[:, None], file, lo), weight

    def _target(self, y: Array, file: DataFile, first: int) -> Array:
        """Return class labels where one column stands for several units, else values."""
        if y.shape[1] == 1 and self.num_outputs > 1:
            return class_labels(y[:, 0], self.num_outputs, file.label, self.target[0], first)
        return y.astype(self.dtype)


def describe(
    data: job_pb2.Data, spec: job_pb2.JobSpec, files: Sequence[tuple[Path, str]], *, training: bool
) -> Dataset:
    """Return the data set that (path, label) files make up. Raises DataError for what can be known without the rows."""
    opened = tuple(open_file(path, label) for path, label in files)
    arrays = [file.path.suffix == ".npz" for file in opened]
    if any(arrays) and not all(arrays):
        raise DataError(f"{opened[0].label}: npz files and tables cannot be mixed")
    target = tuple(data.target) or ("y",)
    if arrays[0]:
        features = tuple(data.features) or ("x",)
    else:
        others = {*target, data.weight}
        features = tuple(data.features) or tuple(name for name in opened[0].names if name not in others)
    dataset = Dataset(
        files=opened,
        features=features,
        target=target,
        weight=data.weight,
        num_inputs=spec.network.inputs,
        num_outputs=spec.network.layers[-1].units,
        dtype=Layout.from_spec(spec).dtype,
        num_shards=spec.shards,
    )
    _check(dataset, training=training)
    return dataset


def _check(dataset: Dataset, *, training: bool) -> None:
    what = "array" if dataset.is_arrays else "column"
    for file in dataset.files:
        for name in (*dataset.features, *dataset.target, *([dataset.weight] if dataset.weight else [])):
            if name not in file.names:
                raise unknown(file.label, what, name, file.names)
    first = dataset.files[0].label
    if not dataset.is_arrays and len(dataset.features) != dataset.num_inputs:
        raise _wrong_features(first, len(dataset.features), dataset.num_inputs)
    if dataset.num_rows == 0:
        raise DataError(f"{first}: there are no rows")
    if training and dataset.num_rows < dataset.num_shards:
        few = f"has {dataset.num_rows} rows, fewer than shards ({dataset.num_shards})"
        raise DataError(f"{first}: the training data {few}; set shards to at most {dataset.num_rows}")


def _wrong_features(label: str, found: int, wanted: int) -> DataError:
    return DataError(f"{label}: has {found} features, network.inputs is {wanted}")
