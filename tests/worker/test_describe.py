import numpy as np
import pytest

from lockstep_worker.errors import INVALID, DataError
from tests.worker.data_files import csv_file, job, refusal, shards

Y = {"target": "y"}


def test_the_file_that_is_meant_is_named_among_several(tmp_path):
    good = csv_file(tmp_path, "a,b,c,y\n1,2,3,0\n", "1.csv")
    bad = csv_file(tmp_path, "a,b,c,y\n1,2,3,0\n1,2,inf,0\n", "2.csv")
    assert refusal([good, bad], Y, shards=1).startswith("2.csv: column 'c', data row 2 (the first is 1)")


def test_a_file_with_more_columns_than_the_first_is_refused_unless_features_are_named(tmp_path):
    first = csv_file(tmp_path, "a,b,c,y\n1,2,3,0\n", "1.csv")
    second = csv_file(tmp_path, "a,b,c,y,d\n1,2,3,0,4\n", "2.csv")
    text = "2.csv: has columns that 1.csv has not: d; name the feature columns in data.features"
    assert refusal([first, second], Y, shards=1) == text
    assert len(shards([first, second], Y | {"features": ["a", "b", "c"]}, shards=1)[0].x) == 2


def test_the_index_that_pandas_writes_to_csv_is_no_feature(tmp_path):
    first = csv_file(tmp_path, "a,b,c,y\n1,2,3,0\n", "1.csv")
    second = csv_file(tmp_path, ",a,b,c,y\n7,4,5,6,1\n", "2.csv")
    (shard,) = shards([first, second], Y, shards=1)
    assert shard.x.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert shards([second, first], Y, shards=1)[0].x.tolist() == [[4, 5, 6], [1, 2, 3]]


def test_many_names_are_not_all_told(tmp_path):
    names = [f"f{i}" for i in range(50)]
    path = csv_file(tmp_path, ",".join([*names, "y"]) + "\n" + "0," * 50 + "0\n")
    text = refusal(path, Y)
    assert text.startswith("data.csv: has 50 feature columns, network.inputs is 3: f0, f1, ")
    assert "f19 and 30 more; data.features can name those that are meant" in text
    assert "f20" not in text
    path = csv_file(tmp_path, "x" * 100 + "\n1\n")
    assert refusal(path, Y) == f"data.csv: there is no column 'y'; it has {'x' * 40}..."


@pytest.mark.timeout(100)  # a search through all names for each of them takes longer
def test_many_columns_are_looked_up_in_time(tmp_path):
    num_columns = 120_000
    names = [f"f{i}" for i in range(num_columns)]
    path = csv_file(tmp_path, ",".join([*names, "y"]) + "\n" + "1," * num_columns + "0\n")
    (shard,) = shards([path], Y | {"features": names}, inputs=num_columns, shards=1)
    assert shard.x.sum() == num_columns


def test_arrays_and_columns_cannot_be_mixed(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((4, 3)), y=np.zeros(4))
    paths = [csv_file(tmp_path, "a,b,c,y\n1,2,3,0\n"), tmp_path / "data.npz"]
    assert refusal(paths, Y) == "data.npz: npz files cannot be mixed with files of columns"


def test_labels_and_values_cannot_be_mixed(tmp_path):
    np.savez(tmp_path / "1.npz", x=np.ones((4, 3)), y=np.zeros(4))
    np.savez(tmp_path / "2.npz", x=np.ones((4, 3)), y=np.zeros((4, 3)))
    text = "1.npz: array 'y' holds class labels in some files, values in others"
    assert refusal([tmp_path / "1.npz", tmp_path / "2.npz"], {}) == text


def test_what_does_not_fit_the_spec_is_invalid_data(tmp_path):
    with pytest.raises(DataError) as caught:
        shards(csv_file(tmp_path, "a,b\n1,2\n"), Y)
    assert caught.value.error_type == INVALID


def test_the_helpers_describe_a_job_that_breaks_no_rule():
    assert job({"path": "x.csv", "target": "y"}).network.inputs == 3
