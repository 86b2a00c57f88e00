"""The formats of data files, by suffix."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lockstep_worker.arrays import Npy, Npz
from lockstep_worker.columns import Batch, Contents
from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.sources import SUFFIXES
from lockstep_worker.tables import Arrow, Csv, Parquet


class Format(Protocol):
    """How files of one kind are read. What its methods raise about a broken file is made a DataError by DataFile."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return what the file holds."""

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi) of the named columns; `hi` is None if the number of rows is not known."""


FORMATS: dict[str, Format] = {
    ".csv": Csv(),
    ".parquet": Parquet(),
    ".arrow": Arrow(),
    ".feather": Arrow(),
    ".npz": Npz(),
    ".npy": Npy(),
}


@dataclass(frozen=True)
class DataFile:
    """One file: its name as users know it, and what it holds."""

    path: Path
    label: str
    size_bytes: int
    contents: Contents

    def batches(self, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi); all if `hi` is None. Raises DataError."""
        with reading(self.label):
            if self.path.stat().st_size != self.size_bytes:
                raise DataError(f"{self.label}: changed while the job was under way; submit it again", UNAVAILABLE)
            yield from _format(self.path).batches(self.path, self.label, list(dict.fromkeys(names)), lo, hi)


def open_file(path: Path, label: str) -> DataFile:
    """Return what a file holds. Raises DataError for one that is missing, broken, or of a kind that is not known."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{label}: the name of a data file must end in {', '.join(SUFFIXES)}", UNAVAILABLE)
    with reading(label):
        return DataFile(path, label, path.stat().st_size, _format(path).describe(path, label))


def _format(path: Path) -> Format:
    return FORMATS[path.suffix.lower()]


class reading:  # noqa: N801  (used as a statement)
    """Turns what a reader raises on a missing or broken file into a DataError that names it."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, DataError):
            return
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{self._label}: cannot be read: {reason}", UNAVAILABLE) from error
