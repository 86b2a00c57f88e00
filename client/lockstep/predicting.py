"""`lockstep predict`: a model and a CSV file, without anything but numpy."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import InvalidDataError
from lockstep.model import Model


def read_features(model: Model, path: Path) -> "np.ndarray[Any, Any]":
    """Return x of shape (N, n_1) from a CSV file with a header: the features the model was trained on.

    Raises InvalidDataError naming file, column and row.
    """
    header, rows = _read(path)
    columns = _columns(model, path, header)
    x = np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            text = row[column] if column < len(row) else ""
            value = _number(text)
            if value is None:
                problem = f"{text!r} is not a number" if text.strip() else "the value is missing"
                place = f"{path}: column {header[column]!r}, data row {i + 1} (the first is 1)"
                raise InvalidDataError(f"{place}: {problem}")
            x[i, j] = value
    return x


def to_csv(predicted: "np.ndarray[Any, Any]") -> str:
    """Return predictions of shape (N,) or (N, n_L) as CSV with a header."""
    rows = predicted if predicted.ndim == 2 else predicted[:, None]
    header = "prediction" if rows.shape[1] == 1 else ",".join(f"prediction_{i}" for i in range(rows.shape[1]))
    return "\n".join([header, *(",".join(str(value) for value in row) for row in rows.tolist())]) + "\n"


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header, and the rows that are not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise InvalidDataError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidDataError(f"{path}: cannot be read: {error}") from None
    if not rows:
        raise InvalidDataError(f"{path}: is empty")
    return rows[0], rows[1:]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _columns(model: Model, path: Path, header: list[str]) -> list[int]:
    data, inputs = model.spec.data, model.spec.network.inputs
    is_table = not (data.path or data.upload).endswith(".npz")
    wanted = list(data.features) if is_table and data.features else []
    missing = [name for name in wanted if name not in header]
    if missing:
        raise InvalidDataError(f"{path}: has no column {missing[0]!r}")
    others = {*data.target, data.weight} if is_table else set()
    columns = [header.index(name) for name in wanted] or [i for i, name in enumerate(header) if name not in others]
    if len(columns) != inputs:
        raise InvalidDataError(f"{path}: has {len(columns)} feature columns, the model takes {inputs}")
    return columns
