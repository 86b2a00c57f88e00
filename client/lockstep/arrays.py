"""Arrays and data frames as uploads: checked here, so that a wrong value is named before anything is sent."""

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep.errors import InvalidDataError
from lockstep_proto.layout import Layout
from lockstep_proto.rules import PROBABILITIES_SUM_TOLERANCE
from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]


def pack(data: Any, spec: job_pb2.JobSpec, name: str, *, training: bool) -> tuple[bytes, bool]:
    """Return (npz file, whether it has weights) for (X, y) or (X, y, weight).

    X has shape (N, n_1); y holds N class labels or has shape (N, n_L); weight has shape (N,). The same arrays give
    the same bytes. Raises InvalidDataError naming what does not fit.
    """
    if not isinstance(data, Sequence) or isinstance(data, str) or len(data) not in (2, 3):
        raise InvalidDataError(f"{name} must be (X, y) or (X, y, weight), got {_kind(data)}")
    x, y, *rest = (_array(part, f"{name} {label}") for part, label in zip(data, ("X", "y", "weight"), strict=False))
    _check_features(x, spec, name, training=training)
    if y.shape[:1] != x.shape[:1]:
        raise InvalidDataError(f"{name} X has {len(x)} rows, y has shape {y.shape}")
    arrays = {"x": _of_type(x, Layout.from_spec(spec).dtype, f"{name} X"), "y": y}
    _check_target(y, spec, name)
    if rest:
        arrays["weight"] = _checked_weight(rest[0], len(x), name)
    return _npz(arrays), bool(rest)


def _kind(data: Any) -> str:
    return f"{len(data)} of them" if isinstance(data, tuple | list) else f"a {type(data).__name__}"


def _array(part: Any, label: str) -> Array:
    """Return an array of finite numbers."""
    try:
        array = np.asarray(part.to_numpy() if hasattr(part, "to_numpy") else part)
    except ValueError as error:  # rows of different lengths
        raise InvalidDataError(f"{label} is no array: {error}") from None
    if array.dtype.kind not in "buif":
        try:
            array = array.astype(np.float64, casting="unsafe" if array.dtype.kind in "OUS" else "safe")
        except (TypeError, ValueError):
            raise InvalidDataError(f"{label} must hold numbers, got {array.dtype}") from None
    _refuse(~np.isfinite(array), array, label, "remove or fill such rows")
    return array


def _of_type(array: Array, dtype: "np.dtype[Any]", label: str) -> Array:
    with np.errstate(over="ignore"):
        if array.dtype.kind in "iu":
            array = array.astype(np.float64)  # rounded as the text of a CSV file is
        converted = array.astype(dtype)
    _refuse(~np.isfinite(converted), array, label, f"it is too large for {dtype}")
    return converted


def _refuse(wrong: Array, array: Array, label: str, reason: str) -> None:
    """Raise InvalidDataError naming the first value where `wrong` is true."""
    if not wrong.any():
        return
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    place = ", ".join(f"{axis} {i}" for axis, i in zip(("row", "column"), first, strict=False))
    raise InvalidDataError(f"{label} has {array[first]} at {place}; {reason}")


def _check_features(x: Array, spec: job_pb2.JobSpec, name: str, *, training: bool) -> None:
    inputs = spec.network.inputs
    if x.ndim != 2 or x.shape[1] != inputs:
        raise InvalidDataError(
            f"{name} X must have shape (rows, {inputs}) for network.inputs = {inputs}, got {x.shape}"
        )
    if len(x) == 0:
        raise InvalidDataError(f"{name} has no rows")
    if training and len(x) < spec.shards:
        fewer = f"fewer than shards ({spec.shards})"
        raise InvalidDataError(f"{name} has {len(x)} rows, {fewer}; set shards to at most {len(x)}")


def _check_target(y: Array, spec: job_pb2.JobSpec, name: str) -> None:
    """One column is class labels where the last layer has several units; else y holds values."""
    outputs = spec.network.layers[-1].units
    if y.ndim == 1 and outputs > 1:
        wrong = (y != np.floor(y)) | (y < 0) | (y >= outputs)
        classes = f"class labels are whole numbers from 0 to {outputs - 1} (the last layer's units)"
        _refuse(wrong, y, f"{name} y", classes)
    elif y.ndim == 1 or y.shape == (len(y), outputs):
        _check_values(_of_type(y, Layout.from_spec(spec).dtype, f"{name} y"), spec, f"{name} y")
    else:
        raise InvalidDataError(f"{name} y must have shape ({len(y)},) or ({len(y)}, {outputs}), got {y.shape}")


def _check_values(y: Array, spec: job_pb2.JobSpec, label: str) -> None:
    """The logarithms of the cross-entropies ask for probabilities."""
    if spec.loss in (job_pb2.LOSS_CROSS_ENTROPY, job_pb2.LOSS_BINARY_CROSS_ENTROPY):
        _refuse((y < 0) | (y > 1), y, label, "this loss takes probabilities, from 0 to 1")
    if spec.loss == job_pb2.LOSS_CROSS_ENTROPY:
        sums = y.sum(axis=1, dtype=np.float64)
        _refuse(
            np.abs(sums - 1) > PROBABILITIES_SUM_TOLERANCE,
            sums,
            f"{label}, summed over its columns,",
            "cross_entropy takes 1",
        )


def _checked_weight(weight: Array, num_rows: int, name: str) -> Array:
    if weight.shape != (num_rows,):
        raise InvalidDataError(f"{name} weight must have shape ({num_rows},), got {weight.shape}")
    _refuse(weight < 0, weight, f"{name} weight", "weights are at least 0")
    if not weight.any():
        raise InvalidDataError(f"{name} weight is 0 in all rows; at least one row has to count")
    return weight.astype(np.float64)


def _npz(arrays: dict[str, Array]) -> bytes:
    """Return an npz file without times in it: equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array))
            file.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue())
    return buffer.getvalue()
