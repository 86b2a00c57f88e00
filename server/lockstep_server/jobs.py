"""What clients ask of jobs: submit, look at, steer and delete them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

from lockstep_proto import failpoints
from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_server.checkpoints import Description
from lockstep_server.directory import Directory
from lockstep_server.errors import DiskFullError, IllegalTransitionError
from lockstep_server.job_record import JobRecord, timestamp
from lockstep_server.lifecycle import State, Wish, name
from lockstep_server.scheduler import Scheduler
from lockstep_server.submission import Submission
from lockstep_server.tools import Tools
from lockstep_server.watch import watch

DEFAULT_LIMIT = 100
PATIENCE_S = 10.0  # how long stop, pause and resume wait for the version under way; they answer then in any case


class Jobs:
    """The verbs of JobService on plain arguments. All of them raise ServerErrors."""

    def __init__(
        self,
        directory: Directory,
        scheduler: Scheduler,
        tools: Tools,
        *,
        make_id: Callable[[], str] = lambda: secrets.token_hex(6),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._directory = directory
        self._scheduler = scheduler
        self._tools = tools
        self._patience_s = patience_s
        self._submission = Submission(directory, tools, make_id=make_id, entered=scheduler.rearrange)

    async def submit(self, request_id: str, spec: job_pb2.JobSpec) -> service_pb2.Job:
        """A new job, or the one that the same request has made before."""
        return self.snapshot(await self._submission.submit(request_id, spec))

    def get(self, job_id: str) -> service_pb2.Job:
        """One job."""
        return self.snapshot(self._directory.find(job_id))

    def list(self, states: Collection[State.ValueType], limit: int) -> list[service_pb2.Job]:
        """Jobs in these states (all if none are given), newest first."""
        newest_first = sorted(self._directory, key=lambda record: -record.place)
        chosen = [record for record in newest_first if not states or record.state in states]
        return [self.snapshot(record) for record in chosen[: limit if limit > 0 else DEFAULT_LIMIT]]

    async def stop(self, job_id: str) -> service_pb2.Job:
        """End a job; one that has ended stays as it is."""
        record = self._directory.find(job_id)
        await self._wish(record, Wish.STOP)
        await self._stop(record)
        return await self._answer(record)

    async def pause(self, job_id: str) -> service_pb2.Job:
        """Pause a running job; one that is paused stays so."""
        record = self._directory.find(job_id)
        if record.state == State.JOB_STATE_RUNNING:
            await self._wish(record, Wish.PAUSE)
            supervisor = self._scheduler.supervisor(record)
            supervisor.pause()
            self._scheduler.rearrange()
            await supervisor.concluded(self._patience_s)
        elif record.state != State.JOB_STATE_PAUSED:
            raise self._cannot_pause(record)
        if record.ended:  # before it could be paused
            raise self._cannot_pause(record)
        return await self._answer(record)

    async def resume(self, job_id: str) -> service_pb2.Job:
        """Put a paused job back at its place in the queue; one that is there or runs stays so.

        One that is about to be paused is resumed when it has been.
        """
        record = self._directory.find(job_id)
        if record.ended:
            raise IllegalTransitionError(f"job {record.id} has {name(record.state)}; only a paused job can be resumed")
        if record.state == State.JOB_STATE_RUNNING and record.wish == Wish.PAUSE:
            supervisor = self._scheduler.supervisor(record)
            await self._wish(record, Wish.RESUME)
            await supervisor.concluded(self._patience_s)
        elif record.state == State.JOB_STATE_PAUSED:
            self._scheduler.resume(record)
        return await self._answer(record)

    async def delete(self, job_id: str) -> int:
        """Stop a job and remove it with its files and the uploads that no other job names; returns bytes given back."""
        record = self._directory.find(job_id)
        await self._wish(record, Wish.STOP)
        if not await self._stop(record):
            self._scheduler.supervisor(record).end_now()
            await self._scheduler.supervisor(record).concluded()
        freed = await self._delete_rows(record)
        if record.id not in self._directory:  # deleted by another request meanwhile
            return 0
        self._directory.remove(record)
        failpoints.hit("server.job.deleted")
        record.deleted = True
        record.touch()
        needed = {upload_id for other in self._directory for upload_id in other.uploads}
        self._scheduler.rearrange()
        freed += await asyncio.to_thread(self._tools.files(record.id).delete)
        return freed + await asyncio.to_thread(self._tools.uploads.free, record.uploads - needed)

    def watch(self, job_id: str, after_event: int) -> AsyncIterator[service_pb2.WatchResponse]:
        """The job now, whenever it changes, and its events."""
        record = self._directory.find(job_id)
        return watch(record, self._tools.journal, self.snapshot, after_event=after_event)

    def history(self, job_id: str) -> AsyncIterator[service_pb2.History]:
        """What is recorded of a job, in pieces."""
        return self._tools.journal.history(self._directory.find(job_id).id)

    def ledger(self, job_id: str) -> AsyncIterator[service_pb2.Ledger]:
        """The recorded digests of a job, in pieces."""
        return self._tools.journal.ledger(self._directory.find(job_id).id)

    async def checkpoints(self, job_id: str) -> service_pb2.CheckpointList:
        """The checkpoints that are kept of a job, oldest first."""
        files = self._tools.files(self._directory.find(job_id).id)
        return service_pb2.CheckpointList(checkpoints=map(_info, await asyncio.to_thread(files.checkpoints)))

    def model(self, job_id: str, which: service_pb2.WhichModel.ValueType) -> Path:
        """The file of a job's model."""
        return self._tools.files(self._directory.find(job_id).id).model(which)

    def snapshot(self, record: JobRecord) -> service_pb2.Job:
        """The job as it stands at this moment."""
        run = self._scheduler.run(record.id)
        if run is not None:
            record.refresh(run)
        return record.stored().job

    def close(self) -> None:
        """Take no new jobs."""
        self._submission.close()

    def _cannot_pause(self, record: JobRecord) -> IllegalTransitionError:
        return IllegalTransitionError(f"job {record.id} is {name(record.state)}; only a running job can be paused")

    async def _wish(self, record: JobRecord, wish: Wish) -> None:
        """Remember what a person wants, so that a server that is killed meanwhile does not forget it."""
        if not record.ended:
            record.wish = wish
            self._tools.journal.job(record.stored())
            await self._tools.journal.try_flush()

    async def _answer(self, record: JobRecord) -> service_pb2.Job:
        """The job as it stands, once that is on disk. Raises DiskFullError or StorageError."""
        await self._tools.journal.flush()
        return self.snapshot(record)

    async def _delete_rows(self, record: JobRecord) -> int:
        """Remove what the database has of a job; returns the bytes that its files gave back to make room for that."""
        freed = 0
        try:
            await self._tools.journal.delete(record.id)
        except DiskFullError:  # a person who deletes a job wants room
            freed = await asyncio.to_thread(self._tools.files(record.id).delete)
            await self._tools.journal.delete(record.id)
        return freed

    async def _stop(self, record: JobRecord) -> bool:
        """Whether the job has ended; a pause that is under way comes first."""
        while not record.ended:
            supervisor = self._scheduler.supervisor(record)
            supervisor.stop()
            if not await supervisor.concluded(self._patience_s):
                return False
        return True


def _info(told: Description) -> service_pb2.CheckpointInfo:
    return service_pb2.CheckpointInfo(
        version=told.version,
        epoch=told.epoch,
        step_in_epoch=told.step_in_epoch,
        size_bytes=told.size_bytes,
        time=timestamp(told.time_s),
        validation_loss=told.validation_loss,
    )
