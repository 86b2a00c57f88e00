"""Values that cannot be used are told with file, column and row, whatever the format of the file."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from lockstep_worker.columns import is_number, not_a_number
from lockstep_worker.errors import INVALID, DataError
from tests.worker.data_files import WRITERS, dataset, names_in, refusal, shards, table

FORMATS = pytest.mark.parametrize("kind", WRITERS)
ROW = 17  # from 0; in the third row group, the fourth record batch
REMOVE = "remove or fill such rows"


def place(name, column):
    """The start of the message about one value of the rows of `table`."""
    row = f"data row {ROW + 1} (the first is 1)"
    if name.endswith(".npz"):
        return (
            f"{name}: array 'x', {row}, column {column + 1}: "
            if column < 3
            else f"{name}: array {'yw'[column - 3]!r}, {row}: "
        )
    if name.endswith(".npy"):
        return f"{name}: column '{column}', {row}: "
    return f"{name}: column {['a', 'b', 'c', 'label', 'w'][column]!r}, {row}: "


def written(kind, path, rows):
    suffix, write = WRITERS[kind]
    path = path.with_name(path.name + suffix)
    write(path, rows)
    return path, names_in(suffix)


@FORMATS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, np.nan, f"the value is nan; {REMOVE}"),
        (0, np.inf, f"the value is inf; {REMOVE}"),
        (2, -np.inf, f"the value is -inf; {REMOVE}"),
        (3, 3, "class labels must be whole numbers from 0 to 2 (the last layer's units), got 3"),
        (3, -1, "class labels must be whole numbers from 0 to 2 (the last layer's units), got -1"),
        (4, -0.5, "sample weights must be at least 0, got -0.5"),
        (4, np.nan, f"the value is nan; {REMOVE}"),
        (4, np.inf, f"the value is inf; {REMOVE}"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_with_its_place(tmp_path, kind, dtype, column, value, message):
    rows = table(29)
    rows[ROW, column] = rows[ROW + 4, column] = value  # the first one is told
    path, data = written(kind, tmp_path / "data", rows)
    assert refusal(path, data, dtype=dtype) == place(path.name, column) + message


@FORMATS
def test_a_value_that_overflows_the_jobs_type_is_told_with_its_place(tmp_path, kind):
    rows = table(29)
    rows[ROW, 1] = 1e39
    path, data = written(kind, tmp_path / "data", rows)
    assert refusal(path, data, dtype="float32") == place(path.name, 1) + "1e+39 is too large for float32"
    assert np.concatenate([shard.x for shard in shards(path, data, dtype="float64")])[ROW, 1] == 1e39


@FORMATS
def test_a_target_of_values_must_be_finite_too(tmp_path, kind):
    rows = table(29)
    rows[ROW, 4] = np.nan
    path, data = written(kind, tmp_path / "data", rows)
    target = {"target": data["weight"]} | ({"features": data["features"]} if "features" in data else {})
    where = place(path.name, 4)[:-2] + ("" if "npz" not in kind else ", column 1")
    if "npz" in kind:  # an array of one column
        np.savez(path, x=rows[:, :3], y=rows[:, 4:])
        target, where = {}, where.replace("'w'", "'y'")
    assert refusal(path, target, outputs=1) == f"{where}: the value is nan; {REMOVE}"


@FORMATS
def test_data_without_rows_are_refused_for_training_and_validation(tmp_path, kind):
    path, data = written(kind, tmp_path / "data", table(0))
    for training in (True, False):
        assert refusal(path, data, training=training) == f"{path.name}: there are no rows"


@FORMATS
def test_fewer_rows_than_shards_are_refused_with_the_way_out(tmp_path, kind):
    path, data = written(kind, tmp_path / "data", table(5))
    words = "the training data has 5 rows, fewer than shards (8); set shards to at most 5"
    assert refusal(path, data, shards=8) == f"{path.name}: {words}"


@FORMATS
def test_another_number_of_features_than_the_network_has_inputs_is_told_before_a_row_is_read(tmp_path, kind):
    path, data = written(kind, tmp_path / "data", table(9))
    with pytest.raises(DataError) as caught:
        dataset(path, {part: data[part] for part in ("target", "weight") if part in data}, inputs=4)
    assert str(caught.value).startswith(f"{path.name}: ")
    assert "network.inputs is 4" in str(caught.value)
    assert caught.value.error_type == INVALID


@FORMATS
@pytest.mark.parametrize("part", ["target", "features", "weight"])
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path, kind, part):
    path, data = written(kind, tmp_path / "data", table(9))
    with pytest.raises(DataError) as caught:
        dataset(path, data | {part: "elsewhere"}, inputs=1 if part == "features" else 3)
    what, names = ("array", "x, y, w") if "npz" in kind else ("column", "a, b, c, label, w")
    names = "0, 1, 2, 3, 4" if "npy" in kind else names
    assert str(caught.value).startswith(f"{path.name}: there is no {what} 'elsewhere'; it has {names}")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat", "'cat' is not a number; encode texts and dates as numbers, classes from 0"),
        ("2024-01-31", "'2024-01-31' is not a number; encode texts and dates as numbers, classes from 0"),
        ("True", "'True' is not a number; write 1 for true and 0 for false"),
        ("NA", "'NA' is not a number; remove or fill such rows"),
        ("#N/A", "'#N/A' is not a number; remove or fill such rows"),
        ("1,5", "'1,5' is not a number; numbers have a decimal point, and no comma"),
        ("1_0", "'1_0' is not a number; encode texts and dates as numbers, classes from 0"),
        ("٣", "'٣' is not a number; encode texts and dates as numbers, classes from 0"),
        ("0x1F", "'0x1F' is not a number; encode texts and dates as numbers, classes from 0"),
        ("", "the value is missing; remove or fill such rows"),
        ("  ", "the value is missing; remove or fill such rows"),
        ("z" * 50, f"'{'z' * 40}...' is not a number; encode texts and dates as numbers, classes from 0"),
    ],
)
@pytest.mark.parametrize("column", ["b", "y"])
def test_a_text_where_a_number_should_be_is_told_with_what_to_do(tmp_path, suffix, text, message, column):
    path = tmp_path / f"data{suffix}"
    whole = pa.table({"a": ["1"], "b": ["2"], "c": ["3"], "y": ["0"]})
    whole = whole.set_column(whole.column_names.index(column), column, [[text]])
    if suffix == ".csv":
        pa.csv.write_csv(whole, path)
    else:
        others = [name for name in whole.column_names if name != column]
        for name in others:
            i = whole.column_names.index(name)
            whole = whole.set_column(i, name, whole[name].cast(pa.float64()))
        write = pa.parquet.write_table if suffix == ".parquet" else pa.feather.write_feather
        write(whole, str(path))
    assert (
        refusal(path, {"target": "y"}, shards=1)
        == f"data{suffix}: column {column!r}, data row 1 (the first is 1): {message}"
    )


@pytest.mark.parametrize("text", ["1", "-1.5", "+2e-3", " 7 ", ".5", "5.", "nan", "inf", "1e400"])
def test_what_is_read_as_a_number(tmp_path, text):
    (tmp_path / "data.csv").write_text(f"a,y\n{text},0\n")
    assert is_number(text)
    values = {"target": "y"}
    if np.isfinite(float(text)):
        assert shards(tmp_path / "data.csv", values, inputs=1, shards=1)[0].x[0, 0] == float(text)
    else:
        assert f"the value is {float(text)}" in refusal(tmp_path / "data.csv", values, inputs=1, shards=1)


def test_an_error_names_what_was_read_even_if_it_cannot_be_printed():
    assert "'\\x00\\n'" in str(not_a_number("f", "a", 0, "\0\n"))
    assert "column 'tab\\t'" in str(not_a_number("f", "tab\t", 0, "x"))


# Targets that are probabilities


ONE_HOT = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.25, 0.25, 0.5), (1 / 3, 1 / 3, 1 / 3)]
OUTSIDE = "targets of this loss are probabilities, from 0 to 1, got"


def write_targets(kind, folder, targets):
    """Three inputs and three targets a row."""
    rows = np.column_stack([np.ones((len(targets), 3)), targets])
    names = ["a", "b", "c", "p", "q", "r"]
    path = folder / f"data.{kind}"
    data = {"target": names[3:], "features": names[:3]}
    if kind == "csv":
        path.write_text(",".join(names) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows.tolist()))
    elif kind == "parquet":
        pa.parquet.write_table(pa.table(dict(zip(names, rows.T, strict=True))), path)
    elif kind == "npy":
        np.save(path, rows)
        data = {"target": ["3", "4", "5"], "features": ["0", "1", "2"]}
    else:
        np.savez(path, x=rows[:, :3], y=rows[:, 3:])
        data = {}
    return path, data


KINDS = pytest.mark.parametrize("kind", ["csv", "parquet", "npy", "npz"])


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_probabilities_are_taken_as_targets_of_cross_entropy(tmp_path, kind, dtype):
    path, data = write_targets(kind, tmp_path, ONE_HOT)
    (shard,) = shards(path, data, shards=1, dtype=dtype)
    np.testing.assert_array_equal(shard.y, np.array(ONE_HOT, dtype))


@KINDS
@pytest.mark.parametrize(
    ("bad", "column", "message"),
    [
        ((0.5, 0.5, 0.5), None, "the targets of a row must sum to 1 for cross_entropy, got 1.5"),
        ((0.0, 0.0, 0.0), None, "the targets of a row must sum to 1 for cross_entropy, got 0"),
        ((0.5, 0.499, 0.0), None, "the targets of a row must sum to 1 for cross_entropy, got 0.999"),
        ((1.5, -0.5, 0.0), 0, f"{OUTSIDE} 1.5"),
        ((0.5, 0.75, -0.25), 2, f"{OUTSIDE} -0.25"),
    ],
)
def test_the_first_row_of_targets_of_cross_entropy_that_are_no_probabilities_is_told(
    tmp_path, kind, bad, column, message
):
    path, data = write_targets(kind, tmp_path, [*ONE_HOT, bad, (9.0, 9.0, 9.0)])
    row = "data row 5 (the first is 1)"
    names = data.get("target")
    if names is None:
        where = "array 'y'"
        after = "" if column is None else f", column {column + 1}"
    else:
        where, after = f"column{'s ' + ', '.join(names) if column is None else ' ' + repr(names[column])}", ""
    assert refusal(path, data, shards=1) == f"data.{kind}: {where}, {row}{after}: {message}"


@KINDS
@pytest.mark.parametrize(("bad", "column"), [((1.0, 2.0, 0.0), 1), ((0.0, 0.5, -1.0), 2)])
def test_a_target_of_binary_cross_entropy_outside_0_to_1_is_told(tmp_path, kind, bad, column):
    network = {"inputs": 3, "layers": [{"units": 3, "activation": "sigmoid"}]}
    fields = {"network": network, "loss": "binary_cross_entropy", "shards": 1}
    path, data = write_targets(kind, tmp_path, [(1.0, 1.0, 0.0), (0.0, 0.5, 0.0)])  # need not sum to 1
    assert shards(path, data, **fields)[0].num_rows == 2
    path, data = write_targets(kind, tmp_path, [(1.0, 1.0, 0.0), bad])
    text = refusal(path, data, **fields)
    assert "data row 2 (the first is 1)" in text
    assert text.endswith(f"{OUTSIDE} {bad[column]}")


def test_targets_of_other_losses_may_be_anything(tmp_path):
    path, data = write_targets("csv", tmp_path, [(5.0, -7.0, 0.0)])
    network = {"inputs": 3, "layers": [{"units": 3}]}
    (shard,) = shards(path, data, shards=1, network=network, loss="squared_error")
    assert shard.y.tolist() == [[5.0, -7.0, 0.0]]
