"""Sends files to the server, each once: an upload's id is the SHA-256 of its content."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import grpc

from lockstep.calls import Deadline
from lockstep.errors import InvalidDataError
from lockstep_proto.v1 import service_pb2, service_pb2_grpc

PIECE_BYTES = 1024 * 1024
DATA_SUFFIXES = (".csv", ".parquet", ".arrow", ".feather", ".npz", ".npy")  # what workers can read
MODEL_SUFFIXES = (".safetensors",)


def problem(path: Path, suffixes: tuple[str, ...]) -> str:
    """Say why a file cannot be sent; empty if it can."""
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "is a directory; an upload is one file"
    if path.suffix not in suffixes:
        return f"its name must end in {', '.join(suffixes)}"
    return "" if os.access(path, os.R_OK) else "cannot be read: permission denied"


def send_bytes(channel: grpc.Channel, upload_id: str, content: bytes, deadline: Deadline) -> None:
    """Send content, unless the server has it. Raises RpcError."""
    pieces = (content[lo : lo + PIECE_BYTES] for lo in range(0, len(content), PIECE_BYTES))
    _send(channel, upload_id, len(content), pieces, deadline)


def send_file(channel: grpc.Channel, path: Path, deadline: Deadline) -> str:
    """Send a file, unless the server has it. Return the upload's id. Raises InvalidDataError and RpcError."""
    try:
        with path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidDataError(f"{path}: cannot be read: {error.strerror}") from None
    upload_id = sha + path.suffix
    _send(channel, upload_id, path.stat().st_size, _pieces(path), deadline)
    return upload_id


def _send(channel: grpc.Channel, upload_id: str, size: int, pieces: Iterator[bytes], deadline: Deadline) -> None:
    stub = service_pb2_grpc.DataServiceStub(channel)
    try:
        stub.GetUpload(service_pb2.GetUploadRequest(upload_id=upload_id), timeout=deadline.left_s)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
    else:
        return

    def requests() -> Iterator[service_pb2.PutUploadRequest]:
        yield service_pb2.PutUploadRequest(header=service_pb2.Upload(upload_id=upload_id, size_bytes=size))
        for piece in pieces:
            yield service_pb2.PutUploadRequest(data=piece)

    stub.PutUpload(requests(), timeout=deadline.left_s)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
