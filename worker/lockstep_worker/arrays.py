"""npy and npz files: their arrays, and batches of their rows. Python objects in them are never loaded."""

import zipfile
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lockstep_worker.columns import Arrays, Batch, Contents
from lockstep_worker.errors import UNAVAILABLE, DataError

Array = npt.NDArray[Any]
BATCH_BYTES = 8 * 1024 * 1024  # of the rows that are read at once


class Npy:
    """One array of rows and columns; the columns are called "0", "1", ..."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return the columns and the number of rows."""
        with path.open("rb") as file:
            header = _header(file, label, "the array", path.stat().st_size)
        if len(header.shape) != 2:
            use = "for features and target in arrays of their own, use npz"
            raise DataError(f"{label}: must be an array of rows and columns, got shape {header.shape}; {use}")
        _check_numbers(label, "the array", header.dtype)
        num_rows, num_columns = header.shape
        hint = "the columns of an npy file are called 0, 1, ..."
        names = tuple(str(i) for i in range(num_columns))
        return Contents(names, num_rows, num_parts=1 + header.num_bytes // BATCH_BYTES, hint=hint)

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi)."""
        assert hi is not None
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        step = max(1, BATCH_BYTES // max(1, array.shape[1] * array.itemsize))
        for start in range(lo, hi, step):
            rows = array[start : min(start + step, hi)]
            yield Batch(label, start, len(rows), {name: rows[:, int(name)] for name in names})


class Npz:
    """Named arrays with a row each for every row of the data."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return shape and type of each array, without its values; which of them give the rows, the job says."""
        arrays = {}
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                name = member.filename.removesuffix(".npy")
                if name != member.filename:
                    with file.open(member) as stream:
                        header = _header(stream, label, f"array {name!r}", member.file_size)
                    arrays[name] = (header.shape, header.dtype)
        hint = "name the arrays in data.features and data.target"
        return Contents(tuple(arrays), None, num_parts=1, arrays=arrays, hint=hint)

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi), all arrays side by side, each read from its beginning up to there."""
        assert hi is not None
        with zipfile.ZipFile(path) as file:
            sizes = {name: file.getinfo(f"{name}.npy").file_size for name in names}
            arrays = {name: _Rows(file.open(f"{name}.npy"), label, name, size) for name, size in sizes.items()}
            for rows in arrays.values():
                rows.skip(lo)
            step = max(1, BATCH_BYTES // max(1, *(rows.row_bytes for rows in arrays.values())))
            for start in range(lo, hi, step):
                num_rows = min(step, hi - start)
                taken = {name: rows.take(num_rows) for name, rows in arrays.items()}
                yield Batch(label, start, num_rows, taken, kind="array")


class _Rows:
    """An array that is read row after row from a stream."""

    def __init__(self, stream: IO[bytes], label: str, name: str, size_bytes: int) -> None:
        self._stream = stream
        header = _header(stream, label, f"array {name!r}", size_bytes)
        self._shape, self._dtype = header.shape, header.dtype
        self.row_bytes = prod(self._shape[1:]) * self._dtype.itemsize
        self._whole: Array | None = None
        self._row = 0
        if header.by_columns and len(self._shape) > 1:  # no row is whole before the last column
            self._whole = self._read(self._shape[0]).reshape(self._shape[::-1]).T

    def skip(self, num_rows: int) -> None:
        self._row += num_rows
        if self._whole is None:
            self._stream.seek(num_rows * self.row_bytes, 1)

    def take(self, num_rows: int) -> Array:
        self._row += num_rows
        return self._read(num_rows) if self._whole is None else self._whole[self._row - num_rows : self._row]

    def _read(self, num_rows: int) -> Array:
        content = self._stream.read(num_rows * self.row_bytes)
        return np.frombuffer(content, self._dtype).reshape(num_rows, *self._shape[1:])


class _Header(NamedTuple):
    """What stands before the values of an array."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: "np.dtype[Any]"

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def _header(stream: IO[bytes], label: str, what: str, size_bytes: int) -> _Header:
    """Read a header. Raises DataError unless there are as many bytes as it announces."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = _Header(*read(stream))
    num_bytes = size_bytes - stream.tell()
    if not header.dtype.hasobject and num_bytes != header.num_bytes:
        damage = f"holds {num_bytes} bytes of values, not the {header.num_bytes} of shape {header.shape}"
        raise DataError(f"{label}: {what} {damage}; the file is damaged", UNAVAILABLE)
    return header


def check_arrays(label: str, known: Arrays, names: Sequence[str]) -> int:
    """Return the rows that arrays have in common. Raises DataError unless they hold numbers, and equally many rows."""
    for name in names:
        shape, dtype = known[name]
        _check_numbers(label, f"array {name!r}", dtype)
        if not shape:
            raise DataError(f"{label}: array {name!r} is a single value, not one for every row")
    rows = {name: known[name][0][0] for name in names}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        raise DataError(f"{label}: its arrays must have equally many rows, got {counts}")
    return rows[names[0]]


def _check_numbers(label: str, what: str, dtype: "np.dtype[Any]") -> None:
    if dtype.kind in "OUS":
        kind = "Python objects, which are never loaded" if dtype.kind == "O" else f"texts ({dtype})"
        raise DataError(f"{label}: {what} holds {kind}; encode them as numbers, classes from 0")
    if dtype.kind not in "biuf":
        raise DataError(f"{label}: {what} holds {dtype}, not numbers")
