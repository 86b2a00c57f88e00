"""JobService: translates calls to `Jobs` and back."""

from collections.abc import AsyncIterator, Callable

from lockstep_proto.v1 import service_pb2, service_pb2_grpc
from lockstep_server.jobs import Jobs
from lockstep_server.pieces import pieces
from lockstep_server.status import Context, translated


class JobService(service_pb2_grpc.JobServiceServicer):
    """The servicer; `cluster` tells the state of the cluster."""

    def __init__(self, jobs: Jobs, cluster: Callable[[], service_pb2.Cluster]) -> None:
        self._jobs = jobs
        self._cluster = cluster

    async def Submit(self, request: service_pb2.SubmitRequest, context: Context) -> service_pb2.Job:
        """A new job, or the one that the same request made."""
        async with translated(context):
            return await self._jobs.submit(request.request_id, request.spec)

    async def Get(self, request: service_pb2.JobRequest, context: Context) -> service_pb2.Job:
        """One job."""
        async with translated(context):
            return self._jobs.get(request.job_id)

    async def List(self, request: service_pb2.ListRequest, context: Context) -> service_pb2.ListResponse:
        """Jobs, newest first."""
        async with translated(context):
            return service_pb2.ListResponse(jobs=self._jobs.list(request.states, request.limit))

    async def Stop(self, request: service_pb2.JobRequest, context: Context) -> service_pb2.Job:
        """End a job."""
        async with translated(context):
            return await self._jobs.stop(request.job_id)

    async def Pause(self, request: service_pb2.JobRequest, context: Context) -> service_pb2.Job:
        """Pause a running job."""
        async with translated(context):
            return await self._jobs.pause(request.job_id)

    async def Resume(self, request: service_pb2.JobRequest, context: Context) -> service_pb2.Job:
        """Take a paused job up again."""
        async with translated(context):
            return await self._jobs.resume(request.job_id)

    async def Delete(self, request: service_pb2.JobRequest, context: Context) -> service_pb2.DeleteResponse:
        """Remove a job with its files."""
        async with translated(context):
            return service_pb2.DeleteResponse(freed_bytes=await self._jobs.delete(request.job_id))

    async def Watch(
        self,
        request: service_pb2.WatchRequest,
        context: Context,
    ) -> AsyncIterator[service_pb2.WatchResponse]:
        """The job now and whenever it changes, until it has ended."""
        async with translated(context):
            async for response in self._jobs.watch(request.job_id, request.after_event):
                yield response

    async def GetHistory(self, request: service_pb2.JobRequest, context: Context) -> AsyncIterator[service_pb2.History]:
        """The recorded history, in pieces."""
        async with translated(context):
            async for piece in self._jobs.history(request.job_id):
                yield piece

    async def GetLedger(self, request: service_pb2.JobRequest, context: Context) -> AsyncIterator[service_pb2.Ledger]:
        """The recorded digests, in pieces."""
        async with translated(context):
            async for piece in self._jobs.ledger(request.job_id):
                yield piece

    async def ListCheckpoints(self, request: service_pb2.JobRequest, context: Context) -> service_pb2.CheckpointList:
        """The checkpoints that are kept."""
        async with translated(context):
            return await self._jobs.checkpoints(request.job_id)

    async def DownloadModel(
        self,
        request: service_pb2.DownloadModelRequest,
        context: Context,
    ) -> AsyncIterator[service_pb2.FilePiece]:
        """A model in pieces."""
        async with translated(context):
            async for piece in pieces(self._jobs.model(request.job_id, request.which)):
                yield piece

    async def GetCluster(self, request: service_pb2.GetClusterRequest, context: Context) -> service_pb2.Cluster:
        """The server, its fleet and workers."""
        async with translated(context):
            return self._cluster()
