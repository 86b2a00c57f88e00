"""Uploads that a machine has fetched from the server, kept under their SHA-256."""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from lockstep_proto import channels
from lockstep_proto.rules import UPLOAD_ID
from lockstep_proto.v1 import service_pb2, service_pb2_grpc
from lockstep_worker.errors import UNAVAILABLE, DataError

TIMEOUT_S = 600.0  # for an upload; a server that restarts meanwhile is dialled again
REDIAL_S = 1.0
KEEP_S = 7 * 24 * 3600.0  # a file that no job has used for so long goes when another one comes


def cache_dir() -> Path:
    """Return this user's directory for fetched uploads."""
    return Path(tempfile.gettempdir()) / f"lockstep-uploads-{os.getuid()}"


def short_name(upload_id: str) -> str:
    """Return an upload's name for messages."""
    sha, dot, suffix = upload_id.partition(".")
    return f"{sha[:12]}{dot}{suffix}"


def fetch_upload(server: str, upload_id: str, directory: Path, *, timeout_s: float = TIMEOUT_S) -> Path:
    """Return the file of an upload, fetched at most once a machine. Raises DataError."""
    if not UPLOAD_ID.fullmatch(upload_id):  # it becomes a name below the directory
        raise DataError(f"upload {upload_id!r}: is not the id of an upload", UNAVAILABLE)
    path = directory / upload_id
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            raise DataError(f"{directory} belongs to another user; remove it", UNAVAILABLE)
        with _locked(directory / f"{upload_id}.lock"):
            if not path.exists():
                _remove_unused(directory)
                _fetch(server, upload_id, path, timeout_s)
            os.utime(path)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"upload {short_name(upload_id)}: cannot be kept in {directory}: {reason}", UNAVAILABLE
        ) from error
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one task of this machine in at a time; the system lets go of the lock of one that was killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(server: str, upload_id: str, path: Path, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            _fetch_once(server, upload_id, path, end_s - time.monotonic())
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + REDIAL_S > end_s:
                reason = error.details() or error.code().name
                raise DataError(
                    f"upload {short_name(upload_id)}: cannot be fetched from the server: {reason}", UNAVAILABLE
                ) from error
            time.sleep(REDIAL_S)
        else:
            return


def _fetch_once(server: str, upload_id: str, path: Path, timeout_s: float) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{upload_id}.")
    try:
        sha = hashlib.sha256()
        with os.fdopen(handle, "wb") as file, channels.connect(server) as channel:
            pieces = service_pb2_grpc.DataServiceStub(channel).DownloadUpload(
                service_pb2.GetUploadRequest(upload_id=upload_id), timeout=timeout_s, wait_for_ready=True
            )
            for piece in pieces:
                sha.update(piece.data)
                file.write(piece.data)
        if sha.hexdigest() != upload_id.partition(".")[0]:
            raise DataError(
                f"upload {short_name(upload_id)}: arrived damaged, its SHA-256 is {sha.hexdigest()}", UNAVAILABLE
            )
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _remove_unused(directory: Path) -> None:
    oldest = time.time() - KEEP_S
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # another task may have renamed or removed it meanwhile
            if path.stat().st_mtime < oldest:
                path.unlink()
