"""Every message about data that cannot be used."""

import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lockstep_worker.errors import INVALID, UNAVAILABLE, DataError
from lockstep_worker.sources import SUFFIXES
from tests.worker.data_files import (
    WRITERS,
    arrow_table,
    job,
    names_in,
    public_folder,
    refusal,
    shards,
    table,
    unprivileged,
    write_arrow,
    write_npy,
    write_npz,
    write_parquet,
)

Y = {"target": "y"}
LABEL = {"target": "label", "weight": "w"}


def csv(tmp_path, text, name="data.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def write_csv_text(tmp_path, rows):
    lines = [f"1,{p},{q},{r}" for p, q, r in rows]
    return csv(tmp_path, "\n".join(["a,p,q,r", *lines, ""])), PROBABILITIES


def write_npz_probabilities(tmp_path, rows):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((len(rows), 1)), y=np.array(rows))
    return path, {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.csv: is empty"),
        ("\n\n", "data.csv: is empty: it has no header"),
        ("a,b,c,y", "data.csv: there are no rows"),
        ("a,b,c,y\n", "data.csv: there are no rows"),
        (
            "a,b,c,y\n1,2,3,0\n1,abc,3,0\n",
            "data.csv: column 'b', data row 2 (the first is 1): 'abc' is not a number",
        ),
        (
            "a,b,c,y\n1,2,3,0\n\n1,1_0,3,0\n",
            "data.csv: column 'b', data row 2 (the first is 1): '1_0' is not a number",
        ),
        ("a,b,c,y\n1,2,3,dog\n", "data.csv: column 'y', data row 1 (the first is 1): 'dog' is not a number"),
        ("a,b,c,y\n1,2,3,NA\n", "data.csv: column 'y', data row 1 (the first is 1): 'NA' is not a number"),
        (f"a,b,c,y\n1,2,3,{'z' * 50}\n", f"data row 1 (the first is 1): '{'z' * 40}...' is not a number"),
        ("a,b,c,y\n1,2,3,0\n1,2,,0\n", "data.csv: column 'c', data row 2 (the first is 1): the value is missing"),
        (
            "a,b,c,y\n1,2,3,0\n1,nan,3,0\n",
            "data.csv: column 'b', data row 2 (the first is 1): the value is nan; remove or fill such rows",
        ),
        (
            "a,b,c,y\n-inf,2,3,0\n",
            "data.csv: column 'a', data row 1 (the first is 1): the value is -inf; remove or fill such rows",
        ),
        ("a,b,c,y\n1,2,3,0\n1,2,3\n", "data.csv: data row 2 (the first is 1) has 3 values, the header 4"),
        ("a,b,c,y\n1,2,3,0,9\n", "data.csv: data row 1 (the first is 1) has 5 values, the header 4"),
        (
            "a,b,c,y\n1,2,3,3\n",
            "data.csv: column 'y', data row 1 (the first is 1): class labels must be whole numbers from 0 to 2 "
            "(the last layer's units), got 3",
        ),
        ("a,b,c,y\n1,2,3,0\n1,2,3,-1\n", "data row 2 (the first is 1): class labels must be whole numbers"),
        ("a,b,c,y\n1,2,3,0\n1,2,3,0.5\n", "(the last layer's units), got 0.5"),
        ("a,b,c,label\n1,2,3,0\n", "data.csv: there is no column 'y'; it has a, b, c, label"),
        ("a,b,c,yy\n1,2,3,0\n", "data.csv: there is no column 'y'; did you mean 'yy'? it has a, b, c, yy"),
        ("a,b,c, y\n1,2,3,0\n", "data.csv: there is no column 'y'; did you mean ' y'? it has a, b, c,  y"),
        ("a,b,c,Y\n1,2,3,0\n", "data.csv: there is no column 'y'; did you mean 'Y'? it has a, b, c, Y"),
        ("a,b,y,y\n1,2,3,0\n", "data.csv: there are 2 columns 'y'; give each its own name"),
        ("a,a,c,y\n1,2,3,0\n", "data.csv: there are 2 columns 'a'; give each its own name"),
        (
            "1.5,2,3,0\n4,5,6,1\n",
            "data.csv: there is no column 'y'; it has 1.5, 2, 3, 0 "
            "(the first line of a CSV file must name its columns)",
        ),
        ("a;b;c;y\n1;2;3;0\n", "data.csv: its columns are separated by ';'; they must be by commas"),
        ("a\tb\tc\ty\n1\t2\t3\t0\n", "data.csv: its columns are separated by '\\t'; they must be by commas"),
        ('a,b,c,y\n1,2,"3,0\n1,2,3,0\n', "data.csv: data row 1 (the first is 1) has 3 values, the header 4"),
        (
            "a,b,c,y\n" + "1,2,3,0\n" * 3 + '1,2,"3,0\n' + "1,2,3,0\n" * 600_000,
            "data.csv: data row 4 (the first is 1) cannot be read: field larger than field limit (4194304); "
            "is a quotation mark not closed?",
        ),
        ('a,b,"c,y\n' + "1,2,3,0\n" * 600_000, "data.csv: the header cannot be read: field larger than field limit"),
        (
            "a,b,y\n1,2,0\n",
            "data.csv: has 2 feature columns, network.inputs is 3: a, b; data.features can name those that are meant",
        ),
        ("y\n0\n", "data.csv: has 0 feature columns, network.inputs is 3: none; data.features can"),
        (",a,b,y\n1,1,2,0\n", "data.csv: has 2 feature columns, network.inputs is 3: a, b; data.features can"),
        (
            "a,b,c,d,y\n1,2,3,4,0\n",
            "data.csv: has 4 feature columns, network.inputs is 3: a, b, c, d",
        ),
    ],
)
def test_a_csv_that_cannot_be_used_is_told_with_file_column_and_row(tmp_path, text, message):
    assert message in refusal(csv(tmp_path, text), Y, shards=1)


def test_the_row_is_counted_from_the_start_of_the_file_however_far_down(tmp_path, monkeypatch):
    monkeypatch.setattr("lockstep_worker.tables.CSV_BLOCK_BYTES", 200)
    lines = ["a,b,c,y"] + ["1,2,3,0"] * 99
    for bad, words in (("1,nan,3,0", "the value is nan"), ("1,x,3,0", "'x' is not"), ("1,2,3,7", "got 7")):
        text = refusal(csv(tmp_path, "\n".join([*lines, bad])), Y)
        assert "data row 100 " in text
        assert words in text


def test_the_file_that_is_meant_is_named_among_several(tmp_path):
    good = csv(tmp_path, "a,b,c,y\n1,2,3,0\n", "1.csv")
    bad = csv(tmp_path, "a,b,c,y\n1,2,3,0\n1,2,inf,0\n", "2.csv")
    assert refusal([good, bad], Y, shards=1).startswith("2.csv: column 'c', data row 2 (the first is 1)")


def test_a_file_with_more_columns_than_the_first_is_refused_unless_features_are_named(tmp_path):
    first = csv(tmp_path, "a,b,c,y\n1,2,3,0\n", "1.csv")
    second = csv(tmp_path, "a,b,c,y,d\n1,2,3,0,4\n", "2.csv")
    text = "2.csv: has columns that 1.csv has not: d; name the feature columns in data.features"
    assert refusal([first, second], Y, shards=1) == text
    assert len(shards([first, second], Y | {"features": ["a", "b", "c"]}, shards=1)[0].x) == 2


def test_fewer_rows_than_shards_are_told_with_the_way_out(tmp_path):
    text = "the training data has 2 rows, fewer than shards (3); set shards to at most 2"
    by_rows = csv(tmp_path, "a,b,c,y\n1,2,3,0\n1,2,3,0\n")
    assert refusal(by_rows, Y, shards=3) == f"data.csv: {text}"
    write_npy(tmp_path / "data.npy", table(2))
    assert refusal(tmp_path / "data.npy", {"target": "3", "weight": "4"}, shards=3) == f"data.npy: {text}"


@pytest.mark.parametrize("weight", ["-1", "-0.001"])
def test_a_negative_weight_is_told_with_its_row(tmp_path, weight):
    path = csv(tmp_path, f"a,b,c,y,w\n1,2,3,0,1\n1,2,3,0,{weight}\n")
    text = f"column 'w', data row 2 (the first is 1): sample weights must be at least 0, got {float(weight)}"
    assert text in refusal(path, Y | {"weight": "w"}, shards=1)


PROBABILITIES = {"target": ["p", "q", "r"], "features": ["a"]}


@pytest.mark.parametrize("write", [write_csv_text, write_npz_probabilities])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((0.5, 0.6, 0.0), "must sum to 1 for cross_entropy, got 1.1"),
        ((1.5, -0.5, 0.0), "targets of this loss are probabilities, from 0 to 1, got 1.5"),
        ((0.0, 0.0, 0.0), "must sum to 1 for cross_entropy, got 0"),
    ],
)
def test_targets_of_cross_entropy_that_are_no_probabilities_are_told(tmp_path, write, bad, message):
    path, data = write(tmp_path, [(0.2, 0.3, 0.5), (0.0, 0.0, 1.0), bad, (9.0, 9.0, 9.0)])
    found = refusal(path, data, inputs=1, shards=1)
    assert "data row 3 (the first is 1)" in found
    assert message in found


def test_a_target_of_binary_cross_entropy_outside_0_to_1_is_told(tmp_path):
    network = {"inputs": 1, "layers": [{"units": 1, "activation": "sigmoid"}]}
    path = csv(tmp_path, "a,y\n1,0.5\n2,1\n3,2\n")
    found = refusal(path, Y, shards=1, network=network, loss="binary_cross_entropy")
    assert found.startswith("data.csv: column 'y', data row 3 (the first is 1): targets of this loss are probabilities")


def test_a_value_that_overflows_the_jobs_type_is_told(tmp_path):
    path = csv(tmp_path, "a,b,c,y\n1,2,3,0\n1,1e39,3,0\n")
    text = "data.csv: column 'b', data row 2 (the first is 1): 1e+39 is too large for float32"
    assert refusal(path, Y, shards=1, dtype="float32") == text
    assert shards(path, Y, shards=1, dtype="float64")[0].x[1, 1] == 1e39


# Parquet and Arrow


def write_columns(path, **columns):
    rows = {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0], "y": [0, 1]} | columns
    pa.parquet.write_table(pa.table(rows), path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, None], "column 'b', data row 2 (the first is 1): the value is missing"),
        (["1", "2"], "column 'b', data row 1 (the first is 1): '1' is a text; convert the column to numbers"),
        (pa.array(["x", "y"]).dictionary_encode(), "column 'b', data row 1 (the first is 1): 'x' is not a number"),
        (pa.array([1, 2], pa.timestamp("ms")), "column 'b' holds timestamp[ms], not numbers"),
        ([[1.0], [2.0]], "column 'b' holds list<"),
        ([1.0, float("nan")], "column 'b', data row 2 (the first is 1): the value is nan"),
    ],
)
def test_a_column_of_a_table_that_holds_no_numbers_is_told(tmp_path, column, message):
    write_columns(tmp_path / "data.parquet", b=column)
    assert f"data.parquet: {message}" in refusal(tmp_path / "data.parquet", Y, shards=1)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False]),
        pa.array([1, 0], pa.uint8()),
        pa.array([1, 0], pa.float32()),
        pa.array([1, 0], pa.decimal128(5, 2)),
        pa.array([1, 0]).dictionary_encode(),
    ],
)
def test_every_kind_of_number_is_taken(tmp_path, column):
    write_columns(tmp_path / "data.parquet", b=column)
    (shard,) = shards(tmp_path / "data.parquet", Y, shards=1)
    np.testing.assert_array_equal(shard.x[:, 1], [1, 0])


def test_a_table_without_columns_has_none(tmp_path):
    pa.parquet.write_table(pa.table({}), tmp_path / "data.parquet")
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.schema([])):
        pass
    for name in ("data.parquet", "data.arrow"):
        assert refusal(tmp_path / name, Y) == f"{name}: there is no column 'y'; it has none"


def test_an_arrow_stream_and_an_old_feather_file_are_told_with_what_to_write(tmp_path):
    whole = arrow_table(table(3))
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    text = "data.arrow: by its content it is an Arrow stream; write it as an Arrow file"
    assert refusal(tmp_path / "data.arrow", LABEL) == text
    (tmp_path / "data.feather").write_bytes(b"FEA1" + b"\0" * 100)
    text = "data.feather: by its content it is a feather file of version 1; write it as version 2"
    assert refusal(tmp_path / "data.feather", LABEL) == text


@pytest.mark.parametrize(("write", "name"), [(write_parquet, "data.parquet"), (write_arrow, "data.arrow")])
def test_rows_are_counted_over_row_groups_and_record_batches(tmp_path, write, name):
    rows = table(30)
    rows[20, 1] = np.inf
    write(tmp_path / name, rows)
    assert refusal(tmp_path / name, LABEL).startswith(f"{name}: column 'b', data row 21 (the first is 1)")


def test_a_column_with_a_dot_in_its_name_is_no_nested_one(tmp_path):
    whole = arrow_table(table(5)).rename_columns(["a.x", "b", "c", "label", "w"])
    pa.parquet.write_table(whole, tmp_path / "data.parquet")
    assert shards(tmp_path / "data.parquet", LABEL, shards=1)[0].num_rows == 5


# Arrays


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


def test_arrays_and_columns_cannot_be_mixed(tmp_path):
    paths = [csv(tmp_path, "a,b,c,y\n1,2,3,0\n"), arrays(tmp_path)]
    assert refusal(paths, Y) == "data.npz: npz files cannot be mixed with files of columns"


def test_labels_and_values_cannot_be_mixed(tmp_path):
    np.savez(tmp_path / "1.npz", x=np.ones((4, 3)), y=np.zeros(4))
    np.savez(tmp_path / "2.npz", x=np.ones((4, 3)), y=np.zeros((4, 3)))
    text = "1.npz: array 'y' holds class labels in some files, values in others"
    assert refusal([tmp_path / "1.npz", tmp_path / "2.npz"], {}) == text


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


# Files


def unavailable(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        shards(path, Y)
    assert caught.value.error_type == UNAVAILABLE
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_told_by_its_name(tmp_path, suffix):
    assert unavailable(tmp_path / f"data{suffix}", b"") == f"data{suffix}: is empty"


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".parquet", "a Parquet file"),
        (".arrow", "an Arrow file"),
        (".feather", "an Arrow file"),
        (".npz", "an npz or other zip file"),
        (".npy", "an npy file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told(tmp_path, suffix, kind):
    text = unavailable(tmp_path / f"data{suffix}", b"a,b,c,y\n1,2,3,0\n")
    assert text == f"data{suffix}: by its content it is not {kind}"


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("a Parquet file", write_parquet),
        ("an Arrow file", write_arrow),
        ("an npz or other zip file", write_npz),
        ("compressed; unpack it", lambda path, rows: path.write_bytes(gzip.compress(b"a,b\n"))),
    ],
)
def test_a_file_under_the_name_of_another_kind_is_told_with_its_own(tmp_path, suffix, kind, write):
    write(tmp_path / "other", table(20))
    (other,) = tmp_path.glob("other*")
    assert unavailable(tmp_path / f"data{suffix}", other.read_bytes()) == f"data{suffix}: by its content it is {kind}"


def test_a_csv_may_begin_as_another_kind_of_file_does(tmp_path):
    path = csv(tmp_path, "PAR1,b,c,y\n1,2,3,0\n")
    assert shards(path, Y, shards=1)[0].num_rows == 1


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npz", ".npy"])
def test_a_file_of_the_right_kind_with_nothing_sensible_in_it_is_told(tmp_path, suffix):
    start = {".parquet": b"PAR1", ".arrow": b"ARROW1", ".npz": b"PK\x03\x04", ".npy": b"\x93NUMPY\x01\x00"}[suffix]
    text = unavailable(tmp_path / f"data{suffix}", start + b"\x15 and then something else entirely" * 9)
    assert text.startswith(f"data{suffix}: cannot be read: it may be damaged: ")


@pytest.mark.parametrize(
    ("write", "name"), [(write_parquet, "data.parquet"), (write_arrow, "data.arrow"), (write_npy, "data.npy")]
)
def test_a_file_that_was_cut_off_is_told_by_its_name(tmp_path, write, name):
    path = tmp_path / name
    write(path, table(500))
    path.write_bytes(path.read_bytes()[:-4000])
    assert refusal(path, {"target": "3", "weight": "4"} if name.endswith("npy") else LABEL).startswith(name)


def test_a_damaged_npz_file_is_told_by_its_checksum(tmp_path):
    path = arrays(tmp_path, x=np.ones((4, 3)))
    content = bytearray(path.read_bytes())
    at = content.index(np.float64(1).tobytes())
    content[at + 6] ^= 1
    path.write_bytes(content)
    assert refusal(path, {}).startswith("data.npz: cannot be read: it may be damaged: Bad CRC-32")


def test_a_file_of_another_kind_is_told_with_the_known_suffixes(tmp_path):
    text = "data.xlsx: the name of a data file must end in .csv, .parquet, .arrow, .feather, .npz, .npy"
    assert refusal(csv(tmp_path, "a", "data.xlsx"), Y) == text


def test_a_missing_file_and_a_directory_are_told(tmp_path):
    assert refusal(tmp_path / "no.csv", Y) == "no.csv: cannot be read: No such file or directory"
    (tmp_path / "dir.csv").mkdir()
    assert refusal(tmp_path / "dir.csv", Y) == "dir.csv: cannot be read: Is a directory"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_may_not_be_read_is_told(kind):
    suffix, write = WRITERS[kind]
    with public_folder() as folder:
        path = folder / f"data{suffix}"
        write(path, table(9))
        path.chmod(0)
        with unprivileged():
            assert refusal(path, names_in(suffix)) == f"data{suffix}: cannot be read: Permission denied"


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.zip"])
def test_a_packed_file_is_told_to_be_unpacked(tmp_path, suffix):
    assert refusal(csv(tmp_path, "a", f"data{suffix}"), Y).endswith("; unpack it first")


def test_a_file_that_is_not_utf_8_is_told(tmp_path):
    (tmp_path / "data.csv").write_bytes("größe,b,c,y\n1,2,3,0\n".encode("latin-1"))
    assert refusal(tmp_path / "data.csv", Y) == "data.csv: is not in UTF-8; save it in that encoding"


def test_what_does_not_fit_the_spec_is_invalid_data(tmp_path):
    with pytest.raises(DataError) as caught:
        shards(csv(tmp_path, "a,b\n1,2\n"), Y)
    assert caught.value.error_type == INVALID


def test_the_helpers_describe_a_job_that_breaks_no_rule():
    assert job({"path": "x.csv", "target": "y"}).network.inputs == 3
