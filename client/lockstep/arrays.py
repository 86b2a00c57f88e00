"""Arrays and data frames as uploads: checked here, so that a wrong value is named before anything is sent."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep.errors import InvalidDataError
from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]


def pack(data: Any, spec: job_pb2.JobSpec, name: str, *, training: bool) -> tuple[str, bytes, bool]:
    """Return (upload id, npz file, whether it has weights) for (X, y) or (X, y, weight).

    X has shape (N, n_1); y holds N class labels or has shape (N, n_L); weight has shape (N,). The same arrays give
    the same bytes. Raises InvalidDataError naming what does not fit.
    """
    if not isinstance(data, Sequence) or len(data) not in (2, 3):
        raise InvalidDataError(f"{name} must be (X, y) or (X, y, weight), got {type(data).__name__}")
    x, y, *rest = (_array(part, f"{name} {label}") for part, label in zip(data, ("X", "y", "weight"), strict=False))
    _check_features(x, spec, name, training=training)
    _check_target(y, len(x), spec, name)
    arrays = {"x": x.astype(np.float64) if spec.dtype == job_pb2.DTYPE_FLOAT64 else x.astype(np.float32), "y": y}
    if rest:
        arrays["weight"] = _check_weight(rest[0], len(x), name)
    content = _npz(arrays)
    return hashlib.sha256(content).hexdigest() + ".npz", content, bool(rest)


def _array(part: Any, label: str) -> Array:
    array = np.asarray(part.to_numpy() if hasattr(part, "to_numpy") else part)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise InvalidDataError(f"{label} must hold numbers, got {array.dtype}") from None
    finite = np.isfinite(array)
    if not finite.all():
        place = ", ".join(f"{axis} {i}" for axis, i in zip(("row", "column"), np.argwhere(~finite)[0], strict=False))
        raise InvalidDataError(
            f"{label} has {array[tuple(np.argwhere(~finite)[0])]} at {place}; remove or fill such rows"
        )
    return array


def _check_features(x: Array, spec: job_pb2.JobSpec, name: str, *, training: bool) -> None:
    inputs = spec.network.inputs
    if x.ndim != 2 or x.shape[1] != inputs:
        raise InvalidDataError(
            f"{name} X must have shape (rows, {inputs}) for network.inputs = {inputs}, got {x.shape}"
        )
    if len(x) == 0:
        raise InvalidDataError(f"{name} has no rows")
    if training and len(x) < spec.shards:
        raise InvalidDataError(f"{name} has {len(x)} rows, fewer than shards ({spec.shards})")


def _check_target(y: Array, num_rows: int, spec: job_pb2.JobSpec, name: str) -> None:
    outputs = spec.network.layers[-1].units
    if len(y) != num_rows:
        raise InvalidDataError(f"{name} X has {num_rows} rows, y has {len(y)}")
    if y.ndim == 2 and y.shape[1] == outputs:
        return
    if y.ndim != 1:
        raise InvalidDataError(f"{name} y must have shape ({num_rows},) or ({num_rows}, {outputs}), got {y.shape}")
    wrong = (y != np.floor(y)) | (y < 0) | (y >= outputs)
    if outputs > 1 and wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidDataError(f"{name} y must be class labels 0 to {outputs - 1}, got {y[row]} at row {row}")


def _check_weight(weight: Array, num_rows: int, name: str) -> Array:
    if weight.shape != (num_rows,):
        raise InvalidDataError(f"{name} weight must have shape ({num_rows},), got {weight.shape}")
    if (weight < 0).any():
        raise InvalidDataError(f"{name} weight must be at least 0, got {weight.min()} at row {int(np.argmin(weight))}")
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
