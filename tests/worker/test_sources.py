import pytest

from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.sources import find_files, label


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


@pytest.mark.parametrize("path", ["nope.csv", "no*.csv", "a.csv/b", "a\0.csv"])
def test_a_missing_file_is_told_with_the_roots(root, path):
    assert refusal(path, root) == f"{path}: no such file below the data roots ({root})"


def test_without_roots_nothing_is_found():
    assert refusal("a.csv") == "a.csv: no such file below the data roots (none are set)"


def test_a_directory_without_data_files_is_told_with_their_suffixes(root):
    text = "empty: no data file in there; files must end in .csv, .parquet, .arrow, .feather, .npz, .npy"
    assert refusal("empty", root) == text
