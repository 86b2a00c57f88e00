"""What clients ask of jobs: submit, look at, steer and delete them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path

from lockstep_proto import failpoints
from lockstep_proto.spec import Violation, check, complete
from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_server.checkpoints import Description
from lockstep_server.directory import Directory
from lockstep_server.errors import (
    IllegalTransitionError,
    InvalidRequestError,
    InvalidSpecError,
    ServerError,
    ShuttingDownError,
    UploadNotFoundError,
)
from lockstep_server.job_record import JobRecord, timestamp
from lockstep_server.lifecycle import State, name
from lockstep_server.scheduler import Scheduler
from lockstep_server.store import StoredJob
from lockstep_server.supervisor import INFO
from lockstep_server.tools import Tools
from lockstep_server.watch import watch

MAX_REQUEST_ID = 64  # characters
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
        self._make_id = make_id
        self._patience_s = patience_s
        self._submitting: dict[str, asyncio.Task[JobRecord]] = {}
        self._closed = False

    async def submit(self, request_id: str, spec: job_pb2.JobSpec) -> service_pb2.Job:
        """A new job, or the one that the same request has made before."""
        if self._closed:
            raise ShuttingDownError("the server is going down; submit again when it is back")
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidRequestError(f"request_id may have {MAX_REQUEST_ID} characters, got {len(request_id)}")
        record = self._directory.by_request(request_id)
        if record is None:
            # A task of its own: the caller may give up, and the same request may come again meanwhile.
            record = await asyncio.shield(self._entering(request_id, spec))
        return self.snapshot(record)

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
        await self._stop(record)
        return self.snapshot(record)

    async def pause(self, job_id: str) -> service_pb2.Job:
        """Pause a running job; one that is paused stays so."""
        record = self._directory.find(job_id)
        if record.state == State.JOB_STATE_RUNNING:
            supervisor = self._scheduler.supervisor(record)
            supervisor.pause()
            self._scheduler.rearrange()
            if not await supervisor.concluded(self._patience_s):
                return self.snapshot(record)
        if record.state != State.JOB_STATE_PAUSED:
            raise IllegalTransitionError(f"job {record.id} is {name(record.state)}; only a running job can be paused")
        return self.snapshot(record)

    async def resume(self, job_id: str) -> service_pb2.Job:
        """Put a paused job back at its place in the queue; one that is there or runs stays so."""
        record = self._directory.find(job_id)
        if record.state == State.JOB_STATE_RUNNING and self._scheduler.supervisor(record).concluding:
            await self._scheduler.supervisor(record).concluded(self._patience_s)
        if record.ended:
            raise IllegalTransitionError(f"job {record.id} has {name(record.state)}; only a paused job can be resumed")
        if record.state == State.JOB_STATE_PAUSED:
            record.move(State.JOB_STATE_PENDING, self._tools.clock())
            record.job.message = ""
            self._event(record, "resumed")
            failpoints.hit("server.job.resumed")
            self._scheduler.rearrange()
            await self._tools.journal.try_flush()
        return self.snapshot(record)

    async def delete(self, job_id: str) -> int:
        """Stop a job and remove it with its files and the uploads that no other job names; returns bytes given back."""
        record = self._directory.find(job_id)
        if not await self._stop(record):
            self._scheduler.supervisor(record).end_now()
            await self._scheduler.supervisor(record).concluded()
        if record.id not in self._directory:  # deleted by another request meanwhile
            return 0
        self._directory.remove(record)
        await self._tools.journal.delete(record.id)
        failpoints.hit("server.job.deleted")
        record.deleted = True
        record.touch()
        needed = {upload_id for other in self._directory for upload_id in other.uploads}
        self._scheduler.rearrange()
        freed = await asyncio.to_thread(self._tools.files(record.id).delete)
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
        self._closed = True

    def _entering(self, request_id: str, spec: job_pb2.JobSpec) -> "asyncio.Task[JobRecord]":
        task = self._submitting.get(request_id) if request_id else None
        if task is None:
            task = asyncio.create_task(self._enter(request_id, spec))
            self._submitting[request_id or secrets.token_hex(6)] = task
            task.add_done_callback(self._entered)
        return task

    def _entered(self, task: "asyncio.Task[JobRecord]") -> None:
        self._submitting = {key: other for key, other in self._submitting.items() if other is not task}

    async def _enter(self, request_id: str, spec: job_pb2.JobSpec) -> JobRecord:
        spec = complete(spec)
        violations = check(spec) or self._missing_uploads(spec)
        if violations:
            raise InvalidSpecError(violations)
        failpoints.hit("server.submit.received")
        record = JobRecord(self._new_job(request_id, spec))
        self._tools.journal.job(record.stored())
        self._event(record, "submitted")
        try:
            await self._tools.journal.flush()
        except ServerError:
            self._tools.journal.drop(record.id)
            raise
        failpoints.hit("server.submit.stored")
        self._directory.add(record)
        self._tools.uploads.claim(record.uploads)
        self._scheduler.rearrange()
        return record

    def _new_job(self, request_id: str, spec: job_pb2.JobSpec) -> StoredJob:
        job = service_pb2.Job(
            id=self._make_id(),
            spec=spec,
            state=State.JOB_STATE_PENDING,
            created=timestamp(self._tools.clock()),
            reproducible=spec.numerics != job_pb2.NUMERICS_ANY,
        )
        return StoredJob(place=self._directory.take_place(), request_id=request_id, job=job)

    def _missing_uploads(self, spec: job_pb2.JobSpec) -> Sequence[Violation]:
        named = {
            "data.upload": spec.data.upload,
            "validation.upload": spec.validation.upload,
            "start_from.model": spec.start_from.model,
        }
        violations = []
        for path, upload_id in named.items():
            try:
                if upload_id:
                    self._tools.uploads.find(upload_id)
            except (UploadNotFoundError, InvalidRequestError) as error:
                violations.append(Violation(path, str(error)))
        return violations

    async def _stop(self, record: JobRecord) -> bool:
        """Whether the job has ended; a pause that is under way comes first."""
        while not record.ended:
            supervisor = self._scheduler.supervisor(record)
            supervisor.stop()
            if not await supervisor.concluded(self._patience_s):
                return False
        return True

    def _event(self, record: JobRecord, message: str) -> None:
        event = record.add_event(INFO, message, self._tools.clock())
        self._tools.journal.event(record.id, event)
        self._tools.journal.job(record.stored())


def _info(told: Description) -> service_pb2.CheckpointInfo:
    return service_pb2.CheckpointInfo(
        version=told.version,
        epoch=told.epoch,
        step_in_epoch=told.step_in_epoch,
        size_bytes=told.size_bytes,
        time=timestamp(told.time_s),
        validation_loss=told.validation_loss,
    )
