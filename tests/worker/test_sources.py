import os

import pytest

from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.sources import find_files, label
from tests.worker.data_files import public_folder, unprivileged


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside.csv").write_text("a\n1\n")
    root = tmp_path / "root"
    for name in ("b.csv", "a.csv", "notes.txt", "deep/c.parquet", "deep/.hidden.csv", "empty/readme.txt", "x[1].csv"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\n1\n")
    return root


def names(path, root):
    return [label(file, [root]) for file in find_files(path, [root])]


def refusal(path, *roots):
    with pytest.raises(DataError) as caught:
        find_files(path, list(roots))
    assert caught.value.error_type == UNAVAILABLE
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("deep/.hidden.csv", ["deep/.hidden.csv"]),
        ("a.csv", ["a.csv"]),
        ("notes.txt", ["notes.txt"]),
        (".", ["a.csv", "b.csv", "deep/c.parquet", "x[1].csv"]),
        ("deep", ["deep/c.parquet"]),
        ("[ab].csv", ["a.csv", "b.csv"]),
        ("*/*.parquet", ["deep/c.parquet"]),
        ("x[1].csv", ["x[1].csv"]),
    ],
)
def test_a_path_names_a_file_a_directory_or_a_glob_in_sorted_order(root, path, found):
    assert names(path, root) == found


def test_a_glob_that_meets_a_file_twice_gives_it_once(root):
    assert names("**", root).count("deep/c.parquet") == 1


def test_the_first_root_that_has_the_file_counts(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.csv").write_text("")
    assert find_files("a.csv", [other, root]) == [other / "a.csv"]
    assert find_files("b.csv", [other, root]) == [root / "b.csv"]


def test_special_characters_in_the_name_of_a_root_stand_for_themselves(tmp_path):
    root = tmp_path / "[data]*"
    root.mkdir()
    (root / "a.csv").write_text("")
    assert find_files("*.csv", [root]) == [root / "a.csv"]


@pytest.mark.parametrize("path", ["../outside.csv", "deep/../../outside.csv", "/etc/passwd", ""])
def test_a_path_that_is_not_below_a_root_is_refused(root, path):
    assert refusal(path, root) == f"{path!r}: must be a path below the data roots, without '..'"


@pytest.mark.parametrize("path", ["link.csv", "*.csv", ".", "out/outside.csv"])
def test_a_symbolic_link_out_of_the_root_is_refused(root, tmp_path, path):
    (root / "link.csv").symlink_to(tmp_path / "outside.csv")
    (root / "out").symlink_to(tmp_path)
    assert refusal(path, root).endswith(f"leads out of the data root {root}")


def test_a_symbolic_link_within_the_root_is_followed(root):
    (root / "link.csv").symlink_to(root / "a.csv")
    assert names("link.csv", root) == ["link.csv"]


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "_delta_log", "deep/.git"])
def test_folders_that_hold_no_data_by_their_names_are_passed_over(root, folder):
    path = root / folder / "a.csv"
    path.parent.mkdir()
    path.write_text("a\n1\n")
    (root / "_SUCCESS.csv").write_text("")
    assert names(".", root) == ["a.csv", "b.csv", "deep/c.parquet", "x[1].csv"]
    assert names(f"{folder}/a.csv", root) == [f"{folder}/a.csv"]


def test_a_name_that_is_no_valid_text_can_still_be_told(root):
    (root / "deep" / os.fsdecode(b"caf\xe9.csv")).write_text("")
    assert names("deep", root) == ["deep/c.parquet", "deep/caf\N{REPLACEMENT CHARACTER}.csv"]


def test_a_link_in_a_circle_is_told(root):
    (root / "loop.csv").symlink_to(root / "loop.csv")
    assert refusal("loop.csv", root).startswith("loop.csv: cannot be read: Symlink loop")


def test_a_link_to_nothing_is_told(root):
    (root / "link.csv").symlink_to(root / "gone.csv")
    assert refusal("link.csv", root) == "link.csv: is a link to a file that does not exist"


def test_what_is_no_file_is_told_and_not_waited_for(root):
    os.mkfifo(root / "pipe.csv")
    assert refusal("pipe.csv", root) == "pipe.csv: is no regular file"
    assert "pipe.csv" not in names(".", root)


def test_a_folder_that_may_not_be_read_is_told_and_not_passed_over():
    with public_folder() as root:
        (root / "a.csv").write_text("a\n1\n")
        (root / "deep").mkdir(mode=0)
        with unprivileged():
            assert refusal(".", root) == ".: cannot be read: Permission denied"
            assert refusal("deep/c.parquet", root) == "deep/c.parquet: cannot be read: Permission denied"
        (root / "deep").chmod(0o700)


@pytest.mark.parametrize("path", ["nope.csv", "no*.csv", "a.csv/b", "a\0.csv"])
def test_a_missing_file_is_told_with_the_roots(root, path):
    assert refusal(path, root) == f"{path}: no such file below the data roots ({root})"


def test_without_roots_nothing_is_found():
    assert refusal("a.csv") == "a.csv: no such file below the data roots (none are set)"


def test_a_directory_without_data_files_is_told_with_their_suffixes(root):
    text = "empty: no data file in there; files must end in .csv, .parquet, .arrow, .feather, .npz, .npy"
    assert refusal("empty", root) == text
