"""`lockstep predict`: which columns it takes from a CSV file, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.errors import InvalidDataError
from lockstep.model import Model
from lockstep.predicting import read_features, to_csv
from lockstep_proto.spec import read_spec


def model(**data: Any) -> Model:
    spec = {"network": {"inputs": 2, "layers": [{"units": 1}]}, "loss": "squared_error", "batch_size": 8, "epochs": 1}
    return Model(read_spec(spec | {"data": {"path": "rows.csv", "target": "y"} | data}), np.zeros(3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def test_features_are_all_columns_but_target_and_weight(file: Path) -> None:
    file.write_text("w,a,y,b\n9,1,7,2\n9,3,7,4.5\n")
    assert read_features(model(weight="w"), file).tolist() == [[1, 2], [3, 4.5]]


def test_named_features_are_taken_in_their_order(file: Path) -> None:
    file.write_text("a,b,c\n1,2,3\n")
    assert read_features(model(features=["c", "a"]), file).tolist() == [[3, 1]]


def test_a_model_of_arrays_takes_every_column(file: Path) -> None:
    file.write_text("x,y\n1,2\n")
    assert read_features(model(path="rows.npz", features="x"), file).tolist() == [[1, 2]]


def test_what_spreadsheets_add_is_no_matter(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf"a","b"\r\n"1"," 2 "\r\n\r\n')
    assert read_features(model(features=["a", "b"]), file).tolist() == [[1, 2]]


def test_no_rows_are_no_predictions(file: Path) -> None:
    file.write_text("a,b\n")
    assert read_features(model(), file).shape == (0, 2)
    assert to_csv(np.zeros(0)) == "prediction\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec can't decode"),
        (b"a,b,c\n", "has 3 feature columns, the model takes 2"),
        (b"a,b\n1,2\n3,x\n", "column 'b', data row 2 (the first is 1): 'x' is not a number"),
        (b"a,b\n1,\n", "column 'b', data row 1 (the first is 1): the value is missing"),
        (b"a,b\n1\n", "column 'b', data row 1 (the first is 1): the value is missing"),
        (b"a,b\n1,nan\n", "column 'b', data row 1 (the first is 1): 'nan' is not a number"),
    ],
)
def test_what_cannot_be_used_is_named_by_file_column_and_row(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidDataError) as caught:
        read_features(model(), file)
    assert str(caught.value).startswith(f"{file}: {said}")


def test_a_file_or_column_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(InvalidDataError, match=r"rows\.csv: there is no such file"):
        read_features(model(), file)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidDataError, match="has no column 'c'"):
        read_features(model(features=["a", "c"]), file)


def test_predictions_of_several_outputs_have_a_column_each() -> None:
    assert to_csv(np.array([[1, 2], [3, 4]])) == "prediction_0,prediction_1\n1,2\n3,4\n"
    assert to_csv(np.array([0.5, 1.0], np.float32)) == "prediction\n0.5\n1.0\n"
