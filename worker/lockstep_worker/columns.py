"""Columns of tables as arrays of numbers, with every value looked at."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_worker.errors import DataError

Array = npt.NDArray[Any]


def column_values(column: Any, label: str, name: str, first_row: int) -> Array:
    """Return a pyarrow column as float64 or integer values. Raises DataError for what is missing or no number."""
    import pyarrow

    if column.null_count:
        row = next(i for i, value in enumerate(column.is_null().to_pylist()) if value)
        raise DataError(f"{label}: column {name!r}, row {first_row + row + 1}: the value is missing")
    kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return _parse(column.to_pylist(), label, name, first_row)
    is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
    if not is_number:
        raise DataError(f"{label}: column {name!r} holds {kind}, not numbers")
    values: Array = column.to_numpy()
    return values


def _parse(texts: Sequence[str], label: str, name: str, first_row: int) -> Array:
    values = np.empty(len(texts))
    for i, text in enumerate(texts):
        try:
            values[i] = float(text)
        except ValueError:
            raise DataError(f"{label}: column {name!r}, row {first_row + i + 1}: {text!r} is not a number") from None
    return values


def check_finite(values: Array, label: str, names: Sequence[str], first_row: int) -> None:
    """Raise DataError for the first value of an array of rows (and columns) that is not finite."""
    if not np.issubdtype(values.dtype, np.number) and values.dtype != np.bool_:
        raise DataError(f"{label}: {' and '.join(names)} hold {values.dtype}, not numbers")
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite.reshape(len(values), -1))[0]
        value = values.reshape(len(values), -1)[row, column]
        where = f"column {names[column]!r}" if len(names) > 1 or values.ndim == 1 else f"{names[0]!r}, column {column}"
        raise DataError(f"{label}: {where}, row {first_row + row + 1}: {value} is not a number that can be trained on")


def class_labels(values: Array, num_classes: int, label: str, name: str, first_row: int) -> Array:
    """Return class labels as int64. Raises DataError for the first one that is no class."""
    fits = (values == np.floor(values)) & (values >= 0) & (values < num_classes)
    if not fits.all():
        row = int(np.argmin(fits))
        where = f"{label}: column {name!r}, row {first_row + row + 1}"
        raise DataError(
            f"{where}: class labels must be 0 to {num_classes - 1} (the last layer's units), got {values[row]}"
        )
    return values.astype(np.int64)


def check_weights(values: Array, label: str, name: str, first_row: int) -> None:
    """Raise DataError for a sample weight below 0."""
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        where = f"{label}: column {name!r}, row {first_row + row + 1}"
        raise DataError(f"{where}: sample weights must be at least 0, got {values[row]}")


def unknown(label: str, what: str, name: str, known: Iterable[str]) -> DataError:
    """Return the error of a column or array that is not there."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    hint = f"did you mean {close[0]!r}?" if close else f"there are {shown}"
    return DataError(f"{label}: there is no {what} {name!r}; {hint}")
