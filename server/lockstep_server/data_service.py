"""DataService: translates calls to `Uploads` and back."""

import asyncio
from collections.abc import AsyncIterator

from lockstep_proto.v1 import service_pb2, service_pb2_grpc
from lockstep_server.errors import InvalidRequestError
from lockstep_server.pieces import pieces
from lockstep_server.status import Context, translated
from lockstep_server.uploads import Uploads


class DataService(service_pb2_grpc.DataServiceServicer):
    """The servicer."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    async def GetUpload(self, request: service_pb2.GetUploadRequest, context: Context) -> service_pb2.Upload:
        """Whether an upload is there."""
        async with translated(context):
            size = self._uploads.find(request.upload_id)
            return service_pb2.Upload(upload_id=request.upload_id, size_bytes=size)

    async def PutUpload(
        self,
        request_iterator: AsyncIterator[service_pb2.PutUploadRequest],
        context: Context,
    ) -> service_pb2.Upload:
        """Store a file."""
        async with translated(context):
            first = await anext(request_iterator, None)
            if first is None or first.WhichOneof("kind") != "header":
                raise InvalidRequestError("the first message of an upload must be its header")
            with self._uploads.receive(first.header.upload_id, first.header.size_bytes) as incoming:
                async for request in request_iterator:
                    await asyncio.to_thread(incoming.write, request.data)
                size = await asyncio.to_thread(incoming.keep)
            return service_pb2.Upload(upload_id=first.header.upload_id, size_bytes=size)

    async def DownloadUpload(
        self,
        request: service_pb2.GetUploadRequest,
        context: Context,
    ) -> AsyncIterator[service_pb2.FilePiece]:
        """The content of an upload."""
        async with translated(context):
            async for piece in pieces(self._uploads.path(request.upload_id)):
                yield piece
