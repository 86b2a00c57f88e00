"""Errors of the disk as a person reads them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from lockstep_server.errors import DiskFullError, StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Raise DiskFullError or StorageError, saying what the server was doing, in place of an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"the server's disk is full: cannot {doing}; free some space or delete jobs") from error
        raise StorageError(f"cannot {doing}: {error}") from error
