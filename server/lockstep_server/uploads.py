"""Files that clients send: kept under their SHA-256, so that the same content is sent and stored once."""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from lockstep_proto import failpoints
from lockstep_server.disk import storage_errors, sync_directory, write_all
from lockstep_server.errors import InvalidRequestError, UploadDamagedError, UploadNotFoundError, UploadTooLargeError

SUFFIXES = (".csv", ".parquet", ".arrow", ".feather", ".npz", ".npy", ".safetensors")
UPLOAD_ID = re.compile(rf"[0-9a-f]{{64}}({'|'.join(map(re.escape, SUFFIXES))})")
PROMISE_S = 600.0  # a client that has looked for an upload submits a job with it within this time


class Uploads:
    """The directory of uploads. Its methods block on the disk, but for `claim`."""

    def __init__(self, directory: Path, *, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._promised: dict[str, float] = {}  # when a client was told that the server has it
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("*.part"):  # of a server that was killed
            leftover.unlink()

    def path(self, upload_id: str) -> Path:
        """Where an upload is. Raises InvalidRequestError or UploadNotFoundError."""
        check_id(upload_id)
        path = self._directory / upload_id
        if not path.is_file():
            raise UploadNotFoundError(f"the server has no upload {upload_id}; send it first")
        return path

    def find(self, upload_id: str) -> int:
        """Size in bytes of an upload that a client is about to use; it stays for a while. Raises as `path` does."""
        size = self.path(upload_id).stat().st_size
        self._promised[upload_id] = self._clock()
        self.touch([upload_id])
        return size

    def receive(self, upload_id: str, size_bytes: int) -> "Incoming":
        """Begin to store a file. Raises InvalidRequestError or UploadTooLargeError."""
        check_id(upload_id)
        if not 0 <= size_bytes <= self._max_bytes:
            raise UploadTooLargeError(
                f"upload {upload_id} has {size_bytes} bytes; the server takes up to {self._max_bytes} "
                "(--max-upload-bytes): put the file below a data root and give its path instead",
            )
        return Incoming(self, self._directory, upload_id, size_bytes)

    def claim(self, upload_ids: Iterable[str]) -> None:
        """The promise to keep these is taken over by a job."""
        for upload_id in upload_ids:
            self._promised.pop(upload_id, None)

    def touch(self, upload_ids: Iterable[str]) -> None:
        """Count these as used now."""
        for upload_id in upload_ids:
            if UPLOAD_ID.fullmatch(upload_id) and (self._directory / upload_id).exists():
                os.utime(self._directory / upload_id, (self._clock(), self._clock()))

    def free(self, upload_ids: Iterable[str]) -> int:
        """Remove those that are there and not promised to a client; returns the bytes given back."""
        freed = 0
        for upload_id in upload_ids:
            path = self._directory / upload_id
            if UPLOAD_ID.fullmatch(upload_id) and path.exists() and not self._is_promised(upload_id):
                freed += path.stat().st_size
                path.unlink()
        return freed

    def unused(self, needed: Collection[str], keep_s: float) -> list[str]:
        """Uploads that are not needed and were last used more than `keep_s` ago."""
        oldest = self._clock() - keep_s
        return [
            path.name
            for path in sorted(self._directory.iterdir())
            if UPLOAD_ID.fullmatch(path.name) and path.name not in needed and path.stat().st_mtime < oldest
        ]

    def _is_promised(self, upload_id: str) -> bool:
        return self._clock() - self._promised.get(upload_id, -PROMISE_S) < PROMISE_S


class Incoming:
    """A file on its way in: write all pieces, then `keep`. Leaving the context without it removes what came."""

    def __init__(self, uploads: Uploads, directory: Path, upload_id: str, size_bytes: int) -> None:
        self._uploads = uploads
        self._target = directory / upload_id
        self._size_bytes = size_bytes
        self._written = 0
        self._hash = hashlib.sha256()
        with storage_errors(f"store upload {upload_id}"):
            descriptor, name = tempfile.mkstemp(dir=directory, suffix=".part")
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Add a piece. Raises UploadDamagedError when it is too much, DiskFullError or StorageError."""
        self._written += len(data)
        if self._written > self._size_bytes:
            raise UploadDamagedError(
                f"upload {self._target.name} is longer than the announced {self._size_bytes} bytes"
            )
        self._hash.update(data)
        with storage_errors(f"store upload {self._target.name}"):
            failpoints.hit("server.upload.piece")
            write_all(self._file.fileno(), data)

    def keep(self) -> int:
        """Check and keep the file; returns its size. Raises UploadDamagedError, DiskFullError or StorageError."""
        if self._written != self._size_bytes:
            raise UploadDamagedError(
                f"upload {self._target.name} ended after {self._written} of {self._size_bytes} bytes; send it again",
            )
        if not self._target.name.startswith(self._hash.hexdigest() + "."):
            raise UploadDamagedError(
                f"upload {self._target.name} has other content than its id says (SHA-256 {self._hash.hexdigest()}); "
                "send it again",
            )
        with storage_errors(f"store upload {self._target.name}"):
            os.fsync(self._file.fileno())
            self._temporary.replace(self._target)
            sync_directory(self._target.parent)
            failpoints.hit("server.upload.kept")
        return self._uploads.find(self._target.name)


def check_id(upload_id: str) -> None:
    """Raise InvalidRequestError unless this is the id of an upload, and so a file name without a path."""
    if not UPLOAD_ID.fullmatch(upload_id):
        raise InvalidRequestError(
            f"upload id {upload_id!r} is not a SHA-256 in hexadecimal followed by one of {', '.join(SUFFIXES)}",
        )
