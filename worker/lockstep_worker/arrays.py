"""npy and npz files: their arrays, and batches of their rows."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lockstep_worker.columns import Arrays, Batch, Contents
from lockstep_worker.errors import DataError

Array = npt.NDArray[Any]
BATCH_BYTES = 8 * 1024 * 1024  # of the rows that are read at once


class Npy:
    """One array of rows and columns; the columns are called "0", "1", ..."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return the columns and the number of rows."""
        array = self._open(path)
        if array.ndim != 2:
            raise DataError(f"{label}: must be an array of rows and columns, got shape {array.shape}")
        _check_numbers(label, "the array", array.dtype)
        names = tuple(str(i) for i in range(array.shape[1]))
        return Contents(names, len(array), num_parts=1 + array.nbytes // BATCH_BYTES)

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi)."""
        assert hi is not None
        array = self._open(path)
        step = max(1, BATCH_BYTES // max(1, array.shape[1] * array.itemsize))
        for start in range(lo, hi, step):
            rows = array[start : min(start + step, hi)]
            yield Batch(label, start, len(rows), {name: rows[:, int(name)] for name in names})

    @staticmethod
    def _open(path: Path) -> Array:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


class Npz:
    """Named arrays with a row each for every row of the data."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return shape and type of each array, without its values; which of them give the rows, the job says."""
        arrays = {}
        with zipfile.ZipFile(path) as file:
            for member in file.namelist():
                with file.open(member) as stream:
                    shape, _, dtype = _header(stream)
                    arrays[member.removesuffix(".npy")] = (shape, dtype)
        return Contents(tuple(arrays), None, num_parts=1, arrays=arrays)

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi), all arrays side by side, each read from its beginning up to there."""
        assert hi is not None
        with zipfile.ZipFile(path) as file:
            arrays = {name: _Rows(file.open(f"{name}.npy")) for name in dict.fromkeys(names)}
            for rows in arrays.values():
                rows.skip(lo)
            step = max(1, BATCH_BYTES // max(1, *(rows.row_bytes for rows in arrays.values())))
            for start in range(lo, hi, step):
                num_rows = min(step, hi - start)
                yield Batch(label, start, num_rows, {name: rows.take(num_rows) for name, rows in arrays.items()})


class _Rows:
    """An array that is read row after row from a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._shape, fortran, self._dtype = _header(stream)
        self.row_bytes = int(np.prod(self._shape[1:], dtype=np.int64)) * self._dtype.itemsize
        self._whole: Array | None = None
        self._row = 0
        if fortran and len(self._shape) > 1:  # stored by columns: no row is whole before the last column
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


def _header(stream: IO[bytes]) -> "tuple[tuple[int, ...], bool, np.dtype[Any]]":
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


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
    if dtype.kind not in "biuf":
        raise DataError(f"{label}: {what} holds {dtype}, not numbers")
