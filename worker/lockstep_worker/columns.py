"""Columns as numbers: what a value may be, and the messages about those that are not.

Messages count the rows of a file from 1, without its header.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lockstep_proto.rules import PROBABILITIES_SUM_TOLERANCE
from lockstep_worker.errors import DataError

Array = npt.NDArray[Any]
PIECE_BYTES = 512 * 1024  # rows are turned in pieces of this size, which stay in a core's cache from column to column
SHOWN = 20  # names in a message
SHOWN_CHARS = 40  # of an offending text


class Batch(NamedTuple):
    """Consecutive rows of one file: numbers by column, each of shape (n,), or by array, of shape (n, ...)."""

    label: str
    first_row: int  # in the file, from 0
    num_rows: int
    columns: Mapping[str, Array]


Arrays = Mapping[str, "tuple[tuple[int, ...], np.dtype[Any]]"]  # shape and type of named arrays


class Contents(NamedTuple):
    """What one file holds."""

    names: tuple[str, ...]  # of its columns, or arrays
    num_rows: int | None  # None: not known before all is read
    num_parts: int  # tasks that can share the reading with little double work
    arrays: Arrays | None = None  # if it holds arrays, not columns


def row_place(label: str, name: str, row: int) -> str:
    """Return the start of a message about one value; `row` counts from 0."""
    return f"{label}: column {name!r}, data row {row + 1} (the first is 1)"


def numbers(column: Any, label: str, name: str, first_row: int) -> Array:
    """Return a pyarrow column as an array of numbers. Raises DataError for what is missing or not a number."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if column.null_count:
        row = column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise DataError(f"{row_place(label, name, first_row + int(row))}: the value is missing")
    if pyarrow.types.is_decimal(kind):
        column = column.cast(pyarrow.float64())
    elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        if len(column):
            raise not_a_number(label, name, first_row, column[0].as_py())
        column = pyarrow.array([], pyarrow.float64())
    elif not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
        raise DataError(f"{label}: column {name!r} holds {kind}, not numbers")
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


def not_a_number(label: str, name: str, row: int, text: str) -> DataError:
    """Return the error of a text where a number should be; `row` counts from 0."""
    if not text.strip():
        return DataError(f"{row_place(label, name, row)}: the value is missing")
    shown = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
    return DataError(f"{row_place(label, name, row)}: {shown!r} is not a number")


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
                piece[...] = batch.columns[names[0]][rows]
            else:
                for i, name in enumerate(names):
                    piece[:, i] = batch.columns[name][rows]
        if not np.isfinite(piece).all():
            raise _not_finite(piece, batch, names, rows.start)


def _not_finite(piece: Array, batch: Batch, names: Sequence[str], lo: int) -> DataError:
    row, i = (int(index) for index in np.argwhere(~np.isfinite(piece))[0])
    values = batch.columns[names[0]]
    if values.ndim > 1:
        value = values[lo + row, i]
        row_number = batch.first_row + lo + row + 1
        place = f"{batch.label}: array {names[0]!r}, data row {row_number} (the first is 1), column {i + 1}"
    else:
        value = batch.columns[names[i]][lo + row]
        place = row_place(batch.label, names[i], batch.first_row + lo + row)
    if np.isfinite(value):
        return DataError(f"{place}: {value} is too large for {piece.dtype}")
    return DataError(f"{place}: the value is {value}; remove or fill such rows")


def fill_labels(out: Array, batch: Batch, name: str, num_classes: int, lo: int) -> None:
    """Fill `out`, shape (n,) of int64, with class labels. Raises DataError for the first one that is no class."""
    values = batch.columns[name][lo : lo + len(out)]
    fits = (values == np.floor(values)) & (values >= 0) & (values < num_classes)
    if not fits.all():
        row = int(np.argmin(fits))
        classes = f"class labels must be whole numbers from 0 to {num_classes - 1} (the last layer's units)"
        raise DataError(f"{row_place(batch.label, name, batch.first_row + lo + row)}: {classes}, got {values[row]}")
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
    else:
        i, reason = 0, f"the targets of a row must sum to 1 for cross_entropy, got {sums[row]:.6g}"
    raise DataError(f"{row_place(batch.label, names[min(i, len(names) - 1)], batch.first_row + lo + row)}: {reason}")


def fill_weights(out: Array, batch: Batch, name: str, lo: int) -> None:
    """Fill `out`, shape (n,) of float64, with sample weights. Raises DataError for the first one that is none."""
    fill(out[:, None], batch, [name], lo)
    if (out < 0).any():
        row = int(np.argmax(out < 0))
        place = row_place(batch.label, name, batch.first_row + lo + row)
        raise DataError(f"{place}: sample weights must be at least 0, got {out[row]}")


def check_names(label: str, what: str, wanted: Iterable[str], known: Sequence[str]) -> None:
    """Raise DataError for a wanted column or array that is not there, or there twice."""
    for name in wanted:
        if known.count(name) > 1:
            raise DataError(f"{label}: there are {known.count(name)} {what}s {name!r}; give each its own name")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(f"{label}: there is no {what} {name!r}; {hint}it has {listed(known)}")


def listed(names: Sequence[str]) -> str:
    """Return names for a message, not too many."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
