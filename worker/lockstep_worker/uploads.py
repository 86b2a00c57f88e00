"""Uploads that a machine has fetched from the server, kept under their SHA-256."""

import hashlib
import os
import tempfile
from pathlib import Path

import grpc

from lockstep_proto import channels
from lockstep_proto.v1 import service_pb2, service_pb2_grpc
from lockstep_worker.errors import UNAVAILABLE, DataError

TIMEOUT_S = 600.0  # for a whole upload


def cache_dir() -> Path:
    """Return this user's directory for fetched uploads."""
    return Path(tempfile.gettempdir()) / f"lockstep-uploads-{os.getuid()}"


def fetch_upload(server: str, upload_id: str, directory: Path) -> Path:
    """Return the file of an upload, fetched at most once a machine. Raises DataError."""
    path = directory / upload_id
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory)
    try:
        sha = hashlib.sha256()
        with os.fdopen(handle, "wb") as file, channels.connect(server) as channel:
            pieces = service_pb2_grpc.DataServiceStub(channel).DownloadUpload(
                service_pb2.GetUploadRequest(upload_id=upload_id), timeout=TIMEOUT_S, wait_for_ready=True
            )
            for piece in pieces:
                sha.update(piece.data)
                file.write(piece.data)
        if sha.hexdigest() != upload_id.partition(".")[0]:
            raise DataError(f"upload {upload_id} arrived damaged", UNAVAILABLE)
        os.replace(temporary, path)
    except grpc.RpcError as error:
        details = getattr(error, "details", None)
        reason = details() if details else error
        raise DataError(f"upload {upload_id} cannot be fetched from the server: {reason}", UNAVAILABLE) from error
    except OSError as error:
        raise DataError(f"upload {upload_id} cannot be kept in {directory}: {error.strerror}", UNAVAILABLE) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path
