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


PARQUET, ARROW, NPY, ZIP = "a Parquet file", "an Arrow file", "an npy file", "an npz or other zip file"
SIGNATURES = {  # how files of a kind begin
    b"PAR1": PARQUET,
    b"ARROW1": ARROW,
    b"\x93NUMPY": NPY,
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,  # an empty one
    b"FEA1": "a feather file of version 1; write it as version 2",
    b"\xff\xff\xff\xff": "an Arrow stream; write it as an Arrow file",
    b"\x1f\x8b": "compressed; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it",
}
KINDS = {".parquet": PARQUET, ".arrow": ARROW, ".feather": ARROW, ".npz": ZIP, ".npy": NPY}  # CSV has no signature
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


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
        unpack = "; unpack it first" if path.suffix.lower() in PACKED else ""
        raise DataError(f"{label}: the name of a data file must end in {', '.join(SUFFIXES)}{unpack}", UNAVAILABLE)
    with reading(label):
        _check_signature(path, label)
        return DataFile(path, label, path.stat().st_size, _format(path).describe(path, label))


def _check_signature(path: Path, label: str) -> None:
    """Raise DataError for a file that does not begin as its name promises."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise DataError(f"{label}: is empty", UNAVAILABLE)
    expected = KINDS.get(path.suffix.lower())
    kind = next((kind for signature, kind in SIGNATURES.items() if start.startswith(signature)), None)
    is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    if kind != expected and not (expected is None and is_text):
        raise DataError(f"{label}: by its content it is {kind or 'not ' + str(expected)}", UNAVAILABLE)


def _format(path: Path) -> Format:
    return FORMATS[path.suffix.lower()]


class reading:  # noqa: N801  (used as a statement)
    """Turns what a reader raises on a missing or broken file into a DataError that names it."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, DataError | MemoryError):
            return
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or "it may be damaged: " + (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{self._label}: cannot be read: {reason}", UNAVAILABLE) from error
