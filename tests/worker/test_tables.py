"""CSV, Parquet and Arrow files that cannot be used."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.worker.data_files import arrow_table, csv_file, refusal, shards, table, write_arrow, write_parquet

Y = {"target": "y"}
LABEL = {"target": "label", "weight": "w"}


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
    assert message in refusal(csv_file(tmp_path, text), Y, shards=1)


def test_the_row_is_counted_from_the_start_of_the_file_however_far_down(tmp_path, monkeypatch):
    monkeypatch.setattr("lockstep_worker.tables.CSV_BLOCK_BYTES", 200)
    lines = ["a,b,c,y"] + ["1,2,3,0"] * 99
    for bad, words in (("1,nan,3,0", "the value is nan"), ("1,x,3,0", "'x' is not"), ("1,2,3,7", "got 7")):
        text = refusal(csv_file(tmp_path, "\n".join([*lines, bad])), Y)
        assert "data row 100 " in text
        assert words in text


def test_a_csv_may_begin_as_another_kind_of_file_does(tmp_path):
    path = csv_file(tmp_path, "PAR1,b,c,y\n1,2,3,0\n")
    assert shards(path, Y, shards=1)[0].num_rows == 1


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
