"""`lockstep predict`: a model and a CSV file, without anything but numpy."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import InvalidDataError
from lockstep.model import Model


def read_features(model: Model, path: Path) -> "np.ndarray[Any, Any]":
    """Return x of shape (N, n_1) from a CSV file with a header: the features the model was trained on.

    Raises InvalidDataError naming file, column and row (the first row of data is 1).
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
    except FileNotFoundError:
        raise InvalidDataError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidDataError(f"{path}: cannot be read: {error}") from None
    except ValueError:
        raise InvalidDataError(f"{path}: is empty") from None
    columns = _columns(model, path, header)
    x = np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            try:
                x[i, j] = float(row[column])
            except (ValueError, IndexError):
                value = row[column] if column < len(row) else ""
                where = f"column {header[column]!r}, row {i + 1}"
                raise InvalidDataError(f"{path}: {where}: {value!r} is not a number") from None
    return x


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
