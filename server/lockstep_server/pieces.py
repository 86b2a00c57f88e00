"""Files as streams of pieces."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from lockstep_proto.v1 import service_pb2
from lockstep_server.disk import storage_errors

PIECE_BYTES = 1 << 20


async def pieces(path: Path) -> AsyncIterator[service_pb2.FilePiece]:
    """The content of a file, which may be removed meanwhile; an empty one is one empty piece. Raises StorageError."""
    with storage_errors(f"read {path.name}"), path.open("rb", buffering=0) as file:
        data = await asyncio.to_thread(file.read, PIECE_BYTES)
        yield service_pb2.FilePiece(data=data)
        while data := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield service_pb2.FilePiece(data=data)
