"""Columns as numbers: what a value may be, and the messages about those that are not.

Messages count the rows of a file from 1, without its header.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lockstep_proto.rules import PROBABILITIES_SUM_TOLERANCE
from lockstep_worker.errors import DataError
from lockstep_worker.names import listed, shown

Array = npt.NDArray[Any]
PIECE_BYTES = 512 * 1024  # rows are turned in pieces of this size, which stay in a core's cache from column to column
MISSING = {"na", "n/a", "#n/a", "<na>", "null", "none", "nil", "?", "-", "."}  # how people write that
REMOVE = "remove or fill such rows"


class Batch(NamedTuple):
    """Consecutive rows of one file: numbers by column, each of shape (n,), or by array, of shape (n, ...)."""

    label: str
    first_row: int  # in the file, from 0
    num_rows: int
    columns: Mapping[str, Array]
    kind: str = "column"  # or "array"

    def place(self, names: Sequence[str], row: int, i: int = 0) -> str:
        """Return the start of a message about the i-th value of a row of these columns, or of this one array."""
        array = self.columns[names[0]]
        place = row_place(self.label, [names[min(i, len(names) - 1)]], self.first_row + row, self.kind)
        return f"{place}, column {i + 1}" if array.ndim > 1 else place


Arrays = Mapping[str, "tuple[tuple[int, ...], np.dtype[Any]]"]  # shape and type of named arrays


class Contents(NamedTuple):
    """What one file holds."""

    names: tuple[str, ...]  # of its columns, or arrays
    num_rows: int | None  # None: not known before all is read
    num_parts: int  # tasks that can share the reading with little double work
    arrays: Arrays | None = None  # if it holds arrays, not columns
    hint: str = ""  # where its names come from, for those who look for another one


def row_place(label: str, names: Sequence[str], row: int, kind: str = "column") -> str:
    """Return the start of a message about one or some of a row's values; `row` counts from 0."""
    what = f"{kind} {shown(names[0])}" if len(names) == 1 else f"{kind}s {listed(names)}"
    return f"{label}: {what}, data row {row + 1} (the first is 1)"


def numbers(column: Any, label: str, name: str, first_row: int) -> Array:
    """Return a pyarrow column as an array of numbers. Raises DataError for what is missing or not a number."""
    import pyarrow

    types = pyarrow.types
    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if column.null_count:
        row = column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise DataError(f"{row_place(label, [name], first_row + int(row))}: the value is missing; {REMOVE}")
    if types.is_decimal(kind):
        column = column.cast(pyarrow.string()).cast(pyarrow.float64())  # the direct way does not round to the nearest
    elif types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        if len(column):
            raise _text(label, name, first_row, column[0].as_py())
        column = pyarrow.array([], pyarrow.float64())
    elif types.is_nested(kind):
        raise DataError(f"{label}: column {shown(name)} holds {kind}; give each of its numbers a column of its own")
    elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise DataError(f"{label}: column {shown(name)} holds {kind}, not numbers; convert it to numbers")
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def _text(label: str, name: str, row: int, text: str) -> DataError:
    """Return the error of a column of texts, which may look like numbers."""
    if not is_number(text):
        return not_a_number(label, name, row, text)
    return DataError(f"{row_place(label, [name], row)}: {shown(text)} is a text; convert the column to numbers")


def is_number(text: str) -> bool:
    """Whether a text is read as a number. Not all that Python takes for one is."""
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text


def not_a_number(label: str, name: str, row: int, text: str) -> DataError:
    """Return the error of a text where a number should be; `row` counts from 0."""
    value = text.strip().casefold()
    if not value:
        return DataError(f"{row_place(label, [name], row)}: the value is missing; {REMOVE}")
    if value in MISSING:
        way_out = REMOVE
    elif value in ("true", "false"):
        way_out = "write 1 for true and 0 for false"
    elif "," in value and is_number(value.replace(",", "")):
        way_out = "numbers have a decimal point, and no comma"
    else:
        way_out = "encode texts and dates as numbers, classes from 0"
    return DataError(f"{row_place(label, [name], row)}: {shown(text)} is not a number; {way_out}")


def fill(out: Array, batch: Batch, names: Sequence[str], lo: int) -> None:
    """Fill `out`, shape (n, len(names)), with the rows [lo, lo + n) of a batch.

    Raises DataError for the first row with a value that is not finite in the type of `out`.
    """
    step = max(1, PIECE_BYTES // max(1, out.shape[1] * out.itemsize))
    for start in range(0, len(out), step):
        piece = out[start : start + step]
        rows = slice(lo + start, lo + start + len(piece))
        with np.errstate(over="ignore", invalid="ignore"):
            if batch.columns[names[0]].ndim > 1:
                piece[...] = _floats(batch.columns[names[0]][rows])
            else:
                for i, name in enumerate(names):
                    piece[:, i] = _floats(batch.columns[name][rows])
        if not np.isfinite(piece).all():
            raise _not_finite(piece, batch, names, rows.start)


def _floats(values: Array) -> Array:
    """Have large whole numbers rounded to float64 first, as those of a CSV file are."""
    return values.astype(np.float64) if values.dtype.kind in "iu" and values.itemsize == 8 else values


def _not_finite(piece: Array, batch: Batch, names: Sequence[str], lo: int) -> DataError:
    row, i = (int(index) for index in np.argwhere(~np.isfinite(piece))[0])
    values = batch.columns[names[0]]
    value = values[lo + row, i] if values.ndim > 1 else batch.columns[names[i]][lo + row]
    place = batch.place(names, lo + row, i)
    if np.isfinite(value):
        return DataError(f"{place}: {value!s} is too large for {piece.dtype}")
    return DataError(f"{place}: the value is {value}; {REMOVE}")


def fill_labels(out: Array, batch: Batch, name: str, num_classes: int, lo: int) -> None:
    """Fill `out`, shape (n,) of int64, with class labels. Raises DataError for the first one that is no class."""
    values = batch.columns[name][lo : lo + len(out)]
    fits = (values == np.floor(values)) & (values >= 0) & (values < num_classes)
    if not fits.all():
        row = int(np.argmin(fits))
        classes = f"class labels must be whole numbers from 0 to {num_classes - 1} (the last layer's units)"
        raise DataError(f"{batch.place([name], lo + row)}: {classes}, got {float(values[row]):g}")
    out[...] = values


def check_probabilities(y: Array, batch: Batch, names: Sequence[str], lo: int, *, sum_to_1: bool) -> None:
    """Raise DataError for the first row of `y`, shape (n, n_L), with a value outside [0, 1] or another sum than 1."""
    outside = (y < 0) | (y > 1)
    sums = y.sum(axis=1, dtype=np.float64)
    wrong = outside.any(axis=1) | (sum_to_1 & (np.abs(sums - 1) > PROBABILITIES_SUM_TOLERANCE))
    if not wrong.any():
        return
    row = int(np.argmax(wrong))
    if outside[row].any():
        i = int(np.argmax(outside[row]))
        reason = f"targets of this loss are probabilities, from 0 to 1, got {y[row, i]}"
        raise DataError(f"{batch.place(names, lo + row, i)}: {reason}")
    place = row_place(batch.label, names, batch.first_row + lo + row, batch.kind)
    raise DataError(f"{place}: the targets of a row must sum to 1 for cross_entropy, got {sums[row]:.6g}")


def fill_weights(out: Array, batch: Batch, name: str, lo: int) -> None:
    """Fill `out`, shape (n,) of float64, with sample weights. Raises DataError for the first one that is none."""
    fill(out[:, None], batch, [name], lo)
    if (out < 0).any():
        row = int(np.argmax(out < 0))
        raise DataError(f"{batch.place([name], lo + row)}: sample weights must be at least 0, got {out[row]}")
