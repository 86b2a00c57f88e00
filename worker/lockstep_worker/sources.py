"""The files behind a `Data` message: which they are, and tables of their rows."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lockstep_worker.errors import UNAVAILABLE, DataError

SUFFIXES = (".csv", ".parquet", ".arrow", ".feather", ".npz", ".npy")


def find_files(path: str, roots: Sequence[Path]) -> list[Path]:
    """Return the files that a path below one of the roots names: a file, a directory's files, or those of a glob.

    Sorted by name. Raises DataError if there are none, or if the path leads out of the roots.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise DataError(f"{path}: must be a path below the data roots, without '..'", UNAVAILABLE)
    for root in roots:
        place = root / path
        names = [str(place)] if place.exists() else glob.glob(str(place), recursive=True)
        files = [file for name in sorted(names) for file in _files_of(Path(name))]
        for file in files:
            if not file.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{path}: leads out of the data root {root}", UNAVAILABLE)
        if files:
            return files
    places = ", ".join(str(root) for root in roots) or "none"
    raise DataError(f"{path}: no such file below the data roots ({places})", UNAVAILABLE)


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    return [path]


@dataclass(frozen=True)
class DataFile:
    """One file: its name as users know it, its columns (arrays for npz) and rows."""

    path: Path
    label: str
    names: tuple[str, ...]
    num_rows: int

    @property
    def can_be_entered(self) -> bool:
        """Whether rows in the middle can be read without reading those before them."""
        return self.path.suffix != ".csv"

    def tables(self, lo: int, hi: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yield (first row, pyarrow table of `columns`) over the rows [lo, hi)."""
        with reading(self.label):
            match self.path.suffix:
                case ".parquet":
                    yield from _parquet_tables(self.path, lo, hi, columns)
                case ".csv":
                    yield lo, _read_csv(self.path).select(list(columns)).slice(lo, hi - lo)
                case _:
                    yield lo, _read_arrow(self.path).select(list(columns)).slice(lo, hi - lo)

    def array(self, name: str, lo: int, hi: int) -> np.ndarray[Any, Any]:
        """Return rows of one array of an npz file, or of the one array of an npy file."""
        with reading(self.label):
            if self.path.suffix == ".npy":
                return np.asarray(np.load(self.path, mmap_mode="r")[lo:hi])
            return np.asarray(_load_npz(self.path)[name][lo:hi])


class reading:  # noqa: N801  (used as a statement)
    """Turns what a reader raises on a missing or broken file into a DataError that names it."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, DataError | GeneratorExit) or not isinstance(error, Exception):
            return
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{self._label}: no such file", UNAVAILABLE) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{self._label}: cannot be read: {reason}", UNAVAILABLE) from error


def open_file(path: Path, label: str) -> DataFile:
    """Return what a file holds. Raises DataError for one that is missing, broken, or of a kind that is not known."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{label}: files must end in {', '.join(SUFFIXES)}", UNAVAILABLE)
    with reading(label):
        names, num_rows = _describe(path, label)
    return DataFile(path, label, tuple(names), num_rows)


def _describe(path: Path, label: str) -> tuple[list[str], int]:
    match path.suffix:
        case ".npz":
            arrays = _load_npz(path)
            lengths = {name: arrays[name].shape[0] for name in arrays if arrays[name].ndim}
            if len(set(lengths.values())) > 1:
                raise DataError(f"{label}: its arrays have different numbers of rows: {lengths}")
            return list(arrays), next(iter(lengths.values()), 0)
        case ".npy":
            array = np.load(path, mmap_mode="r")
            if array.ndim != 2:
                raise DataError(f"{label}: must be an array of rows and columns, got shape {array.shape}")
            return [str(column) for column in range(array.shape[1])], len(array)
        case ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                return list(file.schema_arrow.names), file.metadata.num_rows
        case ".csv":
            table = _read_csv(path)
        case _:
            table = _read_arrow(path)
    return list(table.column_names), table.num_rows


def _parquet_tables(path: Path, lo: int, hi: int, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    first = 0
    with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if first < hi and lo < last:
                start = max(lo, first)
                table = file.read_row_group(group, columns=list(columns))
                yield start, table.slice(start - first, min(hi, last) - start)
            first = last


@lru_cache(maxsize=1)  # a task reads the shards of one file one after the other
def _read_csv(path: Path) -> Any:
    import pyarrow.csv

    return pyarrow.csv.read_csv(path)


def _read_arrow(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


@lru_cache(maxsize=1)
def _load_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
