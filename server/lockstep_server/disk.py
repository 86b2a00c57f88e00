"""The disk: its errors as a person reads them, and writes that are whole."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockstep_server.errors import DiskFullError, StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def storage_errors(doing: str, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Raise DiskFullError or StorageError, saying what the server was doing, in place of an OSError (not of `but`)."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"the server's disk is full: cannot {doing}; free some space or delete jobs") from error
        raise StorageError(f"cannot {doing}: {error}") from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes; the system may take fewer at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(directory: Path) -> None:
    """Make a rename in a directory survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
