"""Files that are missing, broken, or of another kind than their name says."""

import gzip

import pyarrow as pa
import pytest

from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.sources import SUFFIXES
from tests.worker.data_files import (
    WRITERS,
    arrow_table,
    csv_file,
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


def test_a_file_of_another_kind_is_told_with_the_known_suffixes(tmp_path):
    text = "data.xlsx: the name of a data file must end in .csv, .parquet, .arrow, .feather, .npz, .npy"
    assert refusal(csv_file(tmp_path, "a", "data.xlsx"), Y) == text


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
    assert refusal(csv_file(tmp_path, "a", f"data{suffix}"), Y).endswith("; unpack it first")


def test_an_arrow_stream_and_an_old_feather_file_are_told_with_what_to_write(tmp_path):
    whole = arrow_table(table(3))
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    text = "data.arrow: by its content it is an Arrow stream; write it as an Arrow file"
    assert refusal(tmp_path / "data.arrow", LABEL) == text
    (tmp_path / "data.feather").write_bytes(b"FEA1" + b"\0" * 100)
    text = "data.feather: by its content it is a feather file of version 1; write it as version 2"
    assert refusal(tmp_path / "data.feather", LABEL) == text


def test_a_file_that_is_not_utf_8_is_told(tmp_path):
    (tmp_path / "data.csv").write_bytes("größe,b,c,y\n1,2,3,0\n".encode("latin-1"))
    assert refusal(tmp_path / "data.csv", Y) == "data.csv: is not in UTF-8; save it in that encoding"
