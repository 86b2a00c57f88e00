"""What a `Data` message stands for: its columns or arrays, checked against the job's network before a row is loaded."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from lockstep_proto.layout import Layout
from lockstep_proto.v1 import job_pb2
from lockstep_worker.arrays import check_arrays
from lockstep_worker.columns import Arrays
from lockstep_worker.dataset import Dataset, check_num_rows
from lockstep_worker.errors import DataError
from lockstep_worker.formats import DataFile, open_file
from lockstep_worker.names import check_names, listed


def describe(
    data: job_pb2.Data, spec: job_pb2.JobSpec, files: Sequence[tuple[Path, str]], *, training: bool
) -> Dataset:
    """Return the data set that (path, label) files make up. Raises DataError for what can be known without the rows."""
    opened = tuple(open_file(path, label) for path, label in files)
    of_arrays = [file.contents.arrays is not None for file in opened]
    if any(of_arrays) and not all(of_arrays):
        raise DataError(f"{opened[of_arrays.index(True)].label}: npz files cannot be mixed with files of columns")
    return (_described_arrays if of_arrays[0] else _described_columns)(data, spec, opened, training)


def _described_columns(
    data: job_pb2.Data, spec: job_pb2.JobSpec, files: tuple[DataFile, ...], training: bool
) -> Dataset:
    target = tuple(data.target)
    first = files[0]
    others = {*target, data.weight, ""}  # the index that pandas writes to CSV has no name, and is no feature
    features = tuple(data.features) or tuple(name for name in first.contents.names if name not in others)
    named = [*features, *target, *([data.weight] if data.weight else [])]
    for file in files:
        check_names(file.label, "column", named, file.contents.names, file.contents.hint)
        more = sorted({*file.contents.names} - {*first.contents.names} - others)
        if more and not data.features:
            hint = "name the feature columns in data.features"
            raise DataError(f"{file.label}: has columns that {first.label} has not: {listed(more)}; {hint}")
    if len(features) != spec.network.inputs:
        inputs = f"{len(features)} feature columns, network.inputs is {spec.network.inputs}"
        hint = "" if data.features else "; data.features can name those that are meant"
        raise DataError(f"{first.label}: has {inputs}: {listed(features)}{hint}")
    counts = [file.contents.num_rows for file in files]
    num_rows = None if None in counts else sum(count for count in counts if count is not None)
    has_labels = len(target) == 1 and spec.network.layers[-1].units > 1
    return _dataset(data, spec, files, num_rows, features, target, has_labels, training)


def _described_arrays(
    data: job_pb2.Data, spec: job_pb2.JobSpec, files: tuple[DataFile, ...], training: bool
) -> Dataset:
    features, target = tuple(data.features) or ("x",), tuple(data.target) or ("y",)
    for what, chosen in (("features", features), ("target", target)):
        if len(chosen) > 1:
            names = f"data.{what} must be its name, got {len(chosen)} names"
            raise DataError(f"{files[0].label}: an npz file has one array of {what}; {names}")
    named = [*features, *target, *([data.weight] if data.weight else [])]
    counted = []
    for file in files:
        arrays = file.contents.arrays
        assert arrays is not None
        check_names(file.label, "array", named, file.contents.names, file.contents.hint)
        num_rows = check_arrays(file.label, arrays, named)
        _check_shapes(file, arrays, features[0], target[0], data.weight, spec.network)
        counted.append(DataFile(file.path, file.label, file.size_bytes, file.contents._replace(num_rows=num_rows)))
    dimensions = {len((file.contents.arrays or {})[target[0]][0]) for file in files}
    if len(dimensions) > 1:
        raise DataError(f"{files[0].label}: array {target[0]!r} holds class labels in some files, values in others")
    has_labels = dimensions == {1} and spec.network.layers[-1].units > 1
    total = sum(file.contents.num_rows or 0 for file in counted)
    return _dataset(data, spec, tuple(counted), total, features, target, has_labels, training)


def _check_shapes(
    file: DataFile, arrays: Arrays, features: str, target: str, weight: str, network: job_pb2.Network
) -> None:
    inputs, outputs = network.inputs, network.layers[-1].units
    n = arrays[features][0][0]
    units = "1 unit" if outputs == 1 else f"{outputs} units"
    _check_shape(file, arrays, features, [(n, inputs)], f"network.inputs is {inputs}")
    _check_shape(file, arrays, target, [(n,), (n, outputs)], f"the last layer has {units}")
    if weight:
        _check_shape(file, arrays, weight, [(n,)], "every row has one weight")


def _check_shape(file: DataFile, arrays: Arrays, name: str, fitting: list[tuple[int, ...]], reason: str) -> None:
    shape = arrays[name][0]
    if shape not in fitting:
        wanted = " or ".join(str(shape) for shape in fitting)
        way_out = "; reshape it" if prod(shape) in map(prod, fitting) else ""
        raise DataError(f"{file.label}: array {name!r} must have shape {wanted}, since {reason}; got {shape}{way_out}")


def _dataset(
    data: job_pb2.Data,
    spec: job_pb2.JobSpec,
    files: tuple[DataFile, ...],
    num_rows: int | None,
    features: tuple[str, ...],
    target: tuple[str, ...],
    has_labels: bool,
    training: bool,
) -> Dataset:
    if num_rows is not None:
        check_num_rows(files[0].label, num_rows, spec.shards, training=training)
    return Dataset(
        files=files,
        num_rows=num_rows,
        features=features,
        target=target,
        weight=data.weight,
        num_inputs=spec.network.inputs,
        num_outputs=spec.network.layers[-1].units,
        has_labels=has_labels,
        loss=spec.loss,
        dtype=Layout.from_spec(spec).dtype,
        num_shards=spec.shards,
        training=training,
    )
