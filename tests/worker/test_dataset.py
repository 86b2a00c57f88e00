from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.shard import Shard
from tests.worker.data_files import COLUMNS, WRITERS, dataset, names_in, shards, table

FORMATS = pytest.mark.parametrize("kind", WRITERS)


def written(kind, path, rows):
    suffix, write = WRITERS[kind]
    path = path.with_name(path.name + suffix)
    write(path, rows)
    return path, names_in(suffix)


@FORMATS
@pytest.mark.parametrize(("num_rows", "num_shards"), [(1, 1), (23, 1), (23, 4), (24, 8), (24, 24)])
def test_the_shards_are_the_rows_in_order_in_nearly_equal_parts(tmp_path, kind, num_rows, num_shards):
    rows = table(num_rows)
    path, data = written(kind, tmp_path / "data", rows)
    found = shards(path, data, shards=num_shards)
    for shard, part in zip(found, np.array_split(rows, num_shards), strict=True):
        np.testing.assert_array_equal(shard.x, part[:, :3])
        np.testing.assert_array_equal(shard.y, part[:, 3])
        np.testing.assert_array_equal(shard.weight, part[:, 4])


@FORMATS
def test_arrays_have_the_jobs_type_and_are_contiguous(tmp_path, kind):
    path, data = written(kind, tmp_path / "data", table(23))
    for shard in shards(path, data, dtype="float32"):
        assert (shard.x.dtype, shard.y.dtype, shard.weight.dtype) == (np.float32, np.int64, np.float64)
        assert all(array.flags.c_contiguous for array in (shard.x, shard.y, shard.weight))


@FORMATS
def test_values_are_rounded_from_float64_to_the_jobs_type(tmp_path, kind):
    rows = table(50)
    path, data = written(kind, tmp_path / "data", rows)
    x = np.concatenate([shard.x for shard in shards(path, data, dtype="float32")])
    np.testing.assert_array_equal(x, rows[:, :3].astype(np.float32))


@FORMATS
@pytest.mark.parametrize(("lo", "hi"), [(0, 1), (1, 3), (3, 5), (4, 5)])
def test_a_range_of_shards_is_what_it_is_among_all(tmp_path, kind, lo, hi):
    path, data = written(kind, tmp_path / "data", table(37))
    described = dataset(path, data, shards=5)
    if described.num_rows is None:
        lo = 0
    everything = list(described.shards(0, 5))
    for shard, same in zip(described.shards(lo, hi), everything[lo:hi], strict=True):
        np.testing.assert_array_equal(shard.x, same.x)
        np.testing.assert_array_equal(shard.y, same.y)


@FORMATS
def test_the_rows_of_several_files_follow_each_other(tmp_path, kind):
    parts = [table(n, seed=n) for n in (9, 1, 14)]
    paths, datas = zip(*[written(kind, tmp_path / f"part-{i}", part) for i, part in enumerate(parts)], strict=True)
    found = shards(list(paths), datas[0], shards=7)
    np.testing.assert_array_equal(np.concatenate([s.x for s in found]), np.concatenate(parts)[:, :3])
    assert [shard.num_rows for shard in found] == [4, 4, 4, 3, 3, 3, 3]


def test_files_of_different_formats_can_be_mixed(tmp_path):
    parts = [table(5, seed=1), table(6, seed=2)]
    first, data = written("csv", tmp_path / "a", parts[0])
    second, _ = written("parquet", tmp_path / "b", parts[1])
    found = shards([first, second], data, shards=3)
    np.testing.assert_array_equal(np.concatenate([s.x for s in found]), np.concatenate(parts)[:, :3])


def test_columns_are_found_by_name_in_each_file(tmp_path):
    (tmp_path / "1.csv").write_text("a,b,c,y\n1,2,3,0\n")
    (tmp_path / "2.csv").write_text("y,c,b,a\n1,6,5,4\n")
    (shard,) = shards([tmp_path / "1.csv", tmp_path / "2.csv"], {"target": "y"}, shards=1)
    np.testing.assert_array_equal(shard.x, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(shard.y, [0, 1])


def test_features_are_all_columns_but_target_and_weight_unless_named(tmp_path):
    path, _ = written("parquet", tmp_path / "data", table(8))
    (all_others,) = shards(path, {"target": "label", "weight": "w"}, shards=1)
    (named,) = shards(path, {"target": "label", "features": ["c", "a"]}, inputs=2, shards=1)
    np.testing.assert_array_equal(named.x, all_others.x[:, [2, 0]])
    assert named.weight is None


@FORMATS
def test_one_target_of_one_unit_is_a_column_of_values(tmp_path, kind):
    rows = table(12)
    path, data = written(kind, tmp_path / "data", rows)
    found = shards(path, data, outputs=1, dtype="float32")
    y = np.concatenate([shard.y for shard in found])
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, rows[:, 3:4])


def test_several_targets_are_the_values_of_the_units(tmp_path):
    rows = table(12)
    path, _ = written("csv", tmp_path / "data", rows)
    found = shards(path, {"target": ["w", "a"], "features": ["b", "c"]}, inputs=2, outputs=2, loss="squared_error")
    np.testing.assert_array_equal(np.concatenate([shard.y for shard in found]), rows[:, [4, 0]])


def test_an_array_of_targets_with_a_column_for_each_unit_is_values(tmp_path):
    x, y = table(9)[:, :3], table(9, seed=1)[:, :3]
    np.savez(tmp_path / "data.npz", x=x, y=y)
    found = shards(tmp_path / "data.npz", {}, shards=2, loss="squared_error")
    np.testing.assert_array_equal(np.concatenate([shard.y for shard in found]), y)


def test_arrays_can_have_other_names(tmp_path):
    np.savez(tmp_path / "data.npz", inputs=np.ones((4, 3)), classes=np.arange(4) % 3)
    (shard,) = shards(tmp_path / "data.npz", {"features": "inputs", "target": "classes"}, shards=1)
    np.testing.assert_array_equal(shard.y, [0, 1, 2, 0])


@FORMATS
def test_validation_data_may_have_fewer_rows_than_shards(tmp_path, kind):
    path, data = written(kind, tmp_path / "data", table(3))
    found = shards(path, data, shards=8, training=False)
    assert [shard.num_rows for shard in found] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert {shard.x.shape[1] for shard in found} == {3}
    assert {shard.y.dtype for shard in found} == {np.dtype(np.int64)}


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy", "npz"])
def test_more_rows_than_a_batch_come_through_whole(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("lockstep_worker.tables.BATCH_ROWS", 1000)
    monkeypatch.setattr("lockstep_worker.tables.CSV_BLOCK_BYTES", 10_000)
    monkeypatch.setattr("lockstep_worker.arrays.BATCH_BYTES", 10_000)
    monkeypatch.setattr("lockstep_worker.columns.PIECE_BYTES", 1000)
    rows = table(5000)
    path, data = written(kind, tmp_path / "data", rows)
    found = shards(path, data, shards=7)
    np.testing.assert_array_equal(np.concatenate([s.x for s in found]), rows[:, :3])
    np.testing.assert_array_equal(np.concatenate([s.y for s in found]), rows[:, 3])


def test_a_csv_whose_whole_numbers_get_a_fraction_far_down_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("lockstep_worker.tables.CSV_BLOCK_BYTES", 100)
    lines = ["a,b,c,y"] + ["1,2,3,0"] * 100 + ["1.5,2,3,0"]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    found = shards(tmp_path / "data.csv", {"target": "y"})
    assert found[-1].x[-1, 0] == 1.5


def test_a_csv_may_have_a_byte_order_mark_empty_lines_spaces_and_text_in_columns_that_are_not_used(tmp_path):
    text = '\ufeffa,b,c,y,name\n 1 ,2,3,0,"x, ""y"""\n\n4,5,6,1,"two\nlines"\n'
    (tmp_path / "data.csv").write_text(text, encoding="utf-8")
    (shard,) = shards(tmp_path / "data.csv", {"target": "y", "features": ["a", "b", "c"]}, shards=1)
    np.testing.assert_array_equal(shard.x, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(("kind", "counted"), [("csv", None), ("parquet", 23), ("arrow", 23), ("npy", 23), ("npz", 23)])
def test_rows_are_counted_without_reading_them_where_the_format_says(tmp_path, kind, counted):
    path, data = written(kind, tmp_path / "data", table(23))
    assert dataset(path, data).num_rows == counted


@pytest.mark.parametrize(("kind", "num_parts"), [("csv", 1), ("npz", 1), ("parquet", 4), ("arrow", 6)])
def test_only_formats_that_can_be_entered_are_shared_among_tasks(tmp_path, kind, num_parts):
    path, data = written(kind, tmp_path / "data", table(60))  # 9 row groups, 12 record batches
    assert dataset(path, data, shards=8).num_parts == num_parts
    assert dataset(path, data, shards=2).num_parts == min(num_parts, 2)


@FORMATS
def test_a_file_that_changed_since_it_was_described_is_refused(tmp_path, kind):
    path, data = written(kind, tmp_path / "data", table(23))
    described = dataset(path, data)
    WRITERS[kind][1](path, table(40))
    with pytest.raises(DataError, match=f"{path.name}: changed while the job was under way") as caught:
        list(described.shards(0, described.num_shards))
    assert caught.value.error_type == UNAVAILABLE


@pytest.mark.parametrize("kind", ["parquet", "arrow", "npy"])
def test_a_file_with_fewer_rows_than_it_had_is_refused(tmp_path, kind):
    path, data = written(kind, tmp_path / "data", table(23))
    described = dataset(path, data)
    (file,) = described.files
    more = replace(file, contents=file.contents._replace(num_rows=24))
    with pytest.raises(DataError, match=f"{path.name}: there are fewer rows than announced; the file is damaged"):
        list(replace(described, files=(more,), num_rows=24).shards(0, 4))


# Properties


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SMALL = st.floats(allow_nan=False, allow_infinity=False, width=32)
LABEL = st.integers(0, 2).map(float)
WEIGHT = st.floats(0, 1e6)
UNTIMED = settings(deadline=None)  # files take as long as the machine lets them


def rows_of(value):
    row = st.tuples(value, value, value, LABEL, WEIGHT)
    return st.lists(row, min_size=1, max_size=40).map(np.array)


def written_all(folder, kinds, rows):
    return {kind: written(kind, Path(folder) / kind.replace(" ", "-"), rows) for kind in kinds}


def bits(shards):
    """The content of shards, to the bit."""
    return [
        [(array.dtype.str, array.shape, array.tobytes()) for array in (shard.x, shard.y, shard.weight)]
        for shard in shards
    ]


@UNTIMED
@given(rows=rows_of(FINITE), num_shards=st.integers(1, 50))
def test_the_same_data_give_the_same_bits_in_every_format(rows, num_shards):
    num_shards = min(num_shards, len(rows))
    with TemporaryDirectory() as folder:
        files = written_all(folder, WRITERS, rows)
        found = {kind: bits(shards(path, data, shards=num_shards)) for kind, (path, data) in files.items()}
    expected = [
        Shard(part[:, :3].copy(), part[:, 3].astype(np.int64), part[:, 4].copy())
        for part in np.array_split(rows, num_shards)
    ]
    assert found == dict.fromkeys(WRITERS, bits(expected))


@UNTIMED
@given(rows=rows_of(SMALL), outputs=st.sampled_from([1, 3]))
def test_the_same_data_give_the_same_bits_in_every_format_in_float32(rows, outputs):
    with TemporaryDirectory() as folder:
        files = written_all(folder, WRITERS, rows)
        found = [bits(shards(path, data, shards=1, outputs=outputs, dtype="float32")) for path, data in files.values()]
    assert found.count(found[0]) == len(WRITERS)
    assert found[0][0][0][2] == rows[:, :3].astype(np.float32).tobytes()


@UNTIMED
@given(
    parts=st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any),
    num_shards=st.integers(1, 30),
    bounds=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    kind=st.sampled_from([kind for kind in WRITERS if kind != "csv"]),
    training=st.booleans(),
)
def test_any_range_of_shards_of_any_files_is_the_same_part_of_all_rows(parts, num_shards, bounds, kind, training):
    rows = table(sum(parts))
    if training:
        num_shards = min(num_shards, len(rows))
    lo, hi = sorted(min(bound, num_shards) for bound in bounds)
    with TemporaryDirectory() as folder:
        pieces = np.split(rows, np.cumsum(parts)[:-1])
        files = [written(kind, Path(folder) / f"part-{i}", piece) for i, piece in enumerate(pieces)]
        described = dataset([path for path, _ in files], files[0][1], shards=num_shards, training=training)
        found = list(described.shards(lo, hi)) if lo < hi else []
    wanted = np.array_split(rows, num_shards)[lo:hi]
    assert [shard.x.tolist() for shard in found] == [part[:, :3].tolist() for part in wanted]
    assert [shard.y.tolist() for shard in found] == [part[:, 3].tolist() for part in wanted]


@UNTIMED
@example(values=[2**60 + 2**36 + 1], dtype="float32")  # a tie between two of float32, once it is one of float64
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), dtype=st.sampled_from(["float32", "float64"]))
def test_whole_numbers_are_rounded_alike_in_every_format(values, dtype):
    column = np.array(values, np.int64)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "1.csv").write_text("a,y\n" + "".join(f"{value},0\n" for value in values))
        pa.parquet.write_table(pa.table({"a": column, "y": np.zeros(len(values))}), folder / "2.parquet")
        np.savez(folder / "3.npz", x=column[:, None], y=np.zeros(len(values)))
        np.save(folder / "4.npy", np.column_stack([column, np.zeros(len(values), np.int64)]))
        names = ({"target": "y"}, {"target": "y"}, {}, {"target": "1"})
        found = [
            shards(path, data, inputs=1, outputs=1, shards=1, dtype=dtype)[0].x.tolist()
            for path, data in zip(sorted(folder.iterdir()), names, strict=True)
        ]
    assert found == [found[0]] * 4


@UNTIMED
@given(st.lists(st.decimals(-(10**12), 10**12, places=6), min_size=1))
def test_decimals_are_rounded_to_the_nearest(values):
    column = pa.array(values, pa.decimal128(20, 6))
    with TemporaryDirectory() as folder:
        pa.parquet.write_table(pa.table({"a": column, "y": [0] * len(values)}), Path(folder) / "data.parquet")
        (shard,) = shards(Path(folder) / "data.parquet", {"target": "y"}, inputs=1, shards=1)
    assert shard.x[:, 0].tolist() == [float(value) for value in values]


def test_the_writers_agree_on_the_columns():
    assert len(COLUMNS) == table(1).shape[1]
