"""npy and npz files that can and cannot be used."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from tests.worker.data_files import refusal, shards


def arrays(tmp_path, **changed):
    found = {"x": np.ones((4, 3)), "y": np.zeros(4), "w": np.ones(4)} | changed
    np.savez(tmp_path / "data.npz", **{name: array for name, array in found.items() if array is not None})
    return tmp_path / "data.npz"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": None}, "there is no array 'x'; it has y, w"),
        ({"y": None, "Y": np.zeros(4)}, "there is no array 'y'; did you mean 'Y'? it has x, w, Y"),
        ({"w": None}, "there is no array 'w'; it has x, y"),
        ({"y": np.zeros(5)}, "its arrays must have equally many rows, got 'x' 4, 'y' 5, 'w' 4"),
        ({"w": np.ones(3)}, "its arrays must have equally many rows, got 'x' 4, 'y' 4, 'w' 3"),
        ({"x": np.ones((4, 2))}, "array 'x' must have shape (4, 3), since network.inputs is 3; got (4, 2)"),
        ({"x": np.ones(4)}, "array 'x' must have shape (4, 3), since network.inputs is 3; got (4,)"),
        (
            {"y": np.zeros((4, 2))},
            "array 'y' must have shape (4,) or (4, 3), since the last layer has 3 units; got (4, 2)",
        ),
        ({"w": np.ones((4, 1))}, "array 'w' must have shape (4,), since every row has one weight; got (4, 1)"),
        (
            {"x": np.ones((4, 3, 1))},
            "array 'x' must have shape (4, 3), since network.inputs is 3; got (4, 3, 1); reshape it",
        ),
        (
            {"y": np.ones((4, 1))},
            "array 'y' must have shape (4,) or (4, 3), since the last layer has 3 units; got (4, 1); reshape it",
        ),
        ({"x": np.ones((4, 3), complex)}, "array 'x' holds complex128, not numbers"),
        ({"x": np.zeros(4, [("a", float)])}, "array 'x' holds [('a', '<f8')], not numbers"),
        (
            {"x": None, "X_train": np.ones((4, 3))},
            "there is no array 'x'; it has y, w, X_train (name the arrays in data.features and data.target)",
        ),
        ({"y": np.array(1.0)}, "array 'y' is a single value, not one for every row"),
        ({"y": np.array(list("abcd"))}, "array 'y' holds texts (<U1); encode them as numbers, classes from 0"),
        (
            {"x": np.full((4, 3), None)},
            "array 'x' holds Python objects, which are never loaded",
        ),
        (
            {"x": np.array([[1, 2, 3], [1, 2, np.nan]] * 2)},
            "array 'x', data row 2 (the first is 1), column 3: the value is nan; remove or fill such rows",
        ),
        ({"y": np.array([0, 1, 2, 3])}, "array 'y', data row 4 (the first is 1): class labels must be whole numbers"),
        (
            {"w": np.array([0, 1, -2, 3])},
            "array 'w', data row 3 (the first is 1): sample weights must be at least 0, got -2.0",
        ),
        ({"x": np.ones((0, 3)), "y": np.zeros(0), "w": np.ones(0)}, "there are no rows"),
    ],
)
def test_arrays_that_cannot_be_used_are_told_with_their_names(tmp_path, changed, message):
    assert f"data.npz: {message}" in refusal(arrays(tmp_path, **changed), {"weight": "w"}, shards=1)


def test_features_of_an_npz_file_are_one_array(tmp_path):
    data = {"features": ["x", "w"]}
    text = "data.npz: an npz file has one array of features; data.features must be its name, got 2 names"
    assert refusal(arrays(tmp_path), data) == text


class Trap:
    """An object whose loading would be seen."""

    def __reduce__(self):
        return os.mkdir, ("loaded",)


def test_python_objects_in_an_array_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([[Trap()] * 3] * 4, dtype=object)
    np.save(tmp_path / "data.npy", objects)
    assert "never loaded" in refusal(tmp_path / "data.npy", {"target": "0"})
    assert "never loaded" in refusal(arrays(tmp_path, x=objects), {})
    assert len(shards(arrays(tmp_path, other=objects), {}, shards=1)) == 1  # what is not used does no harm
    (tmp_path / "data.npy").write_bytes(pickle.dumps(Trap()))
    assert refusal(tmp_path / "data.npy", {"target": "0"}) == "data.npy: by its content it is not an npy file"
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize("array", [np.ones((4, 3), ">f8"), np.ones((4, 3), np.float16), np.ones((4, 3), bool)])
def test_numbers_of_every_size_and_order_of_bytes_are_taken(tmp_path, array):
    (shard,) = shards(arrays(tmp_path, x=array, y=np.array([0, 1, 2, 0], ">i2")), {}, shards=1)
    assert shard.x.tolist() == np.ones((4, 3)).tolist()
    assert shard.y.tolist() == [0, 1, 2, 0]


def test_what_else_is_in_a_zip_file_does_no_harm(tmp_path):
    path = arrays(tmp_path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("readme.txt", "hello")
    assert len(shards(path, {}, shards=1)) == 1
    with zipfile.ZipFile(path, "w") as file:
        pass
    assert refusal(path, {}).startswith("data.npz: there is no array 'x'; it has none")


@pytest.mark.parametrize("by_columns", [False, True])
def test_an_array_with_other_values_than_its_header_says_is_told(tmp_path, by_columns):
    header = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": by_columns, "shape": (10**12, 3)}
    np.lib.format.write_array_header_1_0(header, fields)
    (tmp_path / "data.npy").write_bytes(header.getvalue() + bytes(48))
    with zipfile.ZipFile(arrays(tmp_path, x=None), "a") as file:
        file.writestr("x.npy", header.getvalue() + bytes(48))
    damage = f"holds 48 bytes of values, not the {24 * 10**12} of shape {(10**12, 3)}; the file is damaged"
    assert refusal(tmp_path / "data.npy", {"target": "2"}, inputs=2) == f"data.npy: the array {damage}"
    assert refusal(tmp_path / "data.npz", {}) == f"data.npz: array 'x' {damage}"


def test_an_array_can_be_features_and_target_at_once(tmp_path):
    path = arrays(tmp_path)
    (shard,) = shards(path, {"target": "x"}, shards=1, loss="squared_error")
    assert shard.y.tolist() == shard.x.tolist()
    text = "array 'x' must have shape (4,) or (4, 2), since the last layer has 2 units; got (4, 3)"
    assert refusal(path, {"target": "x"}, outputs=2) == f"data.npz: {text}"


def test_an_npy_file_has_rows_and_columns_of_numbers(tmp_path):
    path = tmp_path / "data.npy"
    for array, message in (
        (np.ones(4), "must be an array of rows and columns, got shape (4,); for features and target in arrays of"),
        (np.ones((4, 4, 1)), "must be an array of rows and columns, got shape (4, 4, 1)"),
        (np.array([["a", "b"]]), "the array holds texts (<U1); encode them as numbers"),
        (np.array([["a", None]], dtype=object), "the array holds Python objects, which are never loaded"),
        (np.ones((4, 3)), "there is no column '3'; it has 0, 1, 2 (the columns of an npy file are called 0, 1, ...)"),
    ):
        np.save(path, array)
        assert refusal(path, {"target": "3"}).startswith(f"data.npy: {message}")


def test_a_damaged_npz_file_is_told_by_its_checksum(tmp_path):
    path = arrays(tmp_path, x=np.ones((4, 3)))
    content = bytearray(path.read_bytes())
    at = content.index(np.float64(1).tobytes())
    content[at + 6] ^= 1
    path.write_bytes(content)
    assert refusal(path, {}).startswith("data.npz: cannot be read: it may be damaged: Bad CRC-32")
