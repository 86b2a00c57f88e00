"""The files behind the path of a `Data` message: which they are, and that they lie below the data roots."""

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lockstep_worker.errors import UNAVAILABLE, DataError

SUFFIXES = (".csv", ".parquet", ".arrow", ".feather", ".npz", ".npy")
HIDDEN = (".", "_")  # how the names of files begin that are no data, such as checkpoints of notebooks or Spark's notes


def find_files(path: str, roots: Sequence[Path]) -> list[Path]:
    """Return the files that a path below one of the roots names: a file, a directory's data files, or those of a glob.

    Each once, sorted by path; the first root that has any counts. Raises DataError if there are none, or if the path
    leads out of its root.
    """
    if not path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise DataError(f"{path!r}: must be a path below the data roots, without '..'", UNAVAILABLE)
    empty: Path | None = None
    for root in roots:
        places = _places(path, root)
        files = sorted({file for place in places for file in _files_of(place, root)})
        if files:
            return files
        empty = next((place for place in places if place.is_dir()), empty)
    if empty is not None:
        raise DataError(f"{path}: no data file in there; files must end in {', '.join(SUFFIXES)}", UNAVAILABLE)
    where = ", ".join(str(root) for root in roots) or "none are set"
    raise DataError(f"{path}: no such file below the data roots ({where})", UNAVAILABLE)


def label(path: Path, roots: Sequence[Path]) -> str:
    """Return a file's name as the user wrote it: relative to its root."""
    root = next((root for root in roots if path.is_relative_to(root)), None)
    name = path.relative_to(root) if root is not None else path.name
    return os.fsencode(name).decode("utf-8", "replace")  # messages are valid text, whatever the name


def _places(path: str, root: Path) -> list[Path]:
    with _readable(path):
        place = root / path
        names = [str(place)] if place.exists() else glob.glob(str(Path(glob.escape(str(root))) / path), recursive=True)
        return [_inside(Path(name), path, root) for name in names]


def _files_of(place: Path, root: Path) -> Iterator[Path]:
    """Yield a file itself, or the data files of a directory; as elsewhere, what begins with . or _ is none of them."""
    if not place.is_dir():
        if not place.is_file():
            kind = "is no regular file" if place.exists() else "is a link to a file that does not exist"
            raise DataError(f"{label(place, [root])}: {kind}", UNAVAILABLE)
        yield place
        return
    with _readable(label(place, [root])):
        for folder, folders, names in os.walk(place, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            for name in names:
                file = Path(folder, name)
                if file.suffix.lower() in SUFFIXES and not name.startswith(HIDDEN) and file.is_file():
                    yield _inside(file, label(file, [root]), root)


def _inside(place: Path, name: str, root: Path) -> Path:
    if not place.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{name}: leads out of the data root {root}", UNAVAILABLE)
    return place


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}", UNAVAILABLE) from error
    except RuntimeError as error:  # what pathlib makes of links in a circle
        raise DataError(f"{name}: cannot be read: {error}", UNAVAILABLE) from error


def _raise(error: OSError) -> None:
    raise error
