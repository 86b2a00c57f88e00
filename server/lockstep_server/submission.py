"""The way of a spec from a client to the queue: checked, made whole, and on disk before it is answered."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from lockstep_proto import failpoints
from lockstep_proto.spec import Violation, check, complete
from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_server.admission import find_source, missing_uploads, settle_start, too_large
from lockstep_server.directory import Directory
from lockstep_server.errors import InvalidRequestError, InvalidSpecError, ServerError, ShuttingDownError
from lockstep_server.job_record import JobRecord, timestamp
from lockstep_server.lifecycle import State
from lockstep_server.store import StoredJob
from lockstep_server.supervisor import INFO
from lockstep_server.tools import Tools

MAX_REQUEST_ID = 64  # characters


class Submission:
    """Enters jobs; `entered` is told of each that is in the queue."""

    def __init__(
        self, directory: Directory, tools: Tools, *, make_id: Callable[[], str], entered: Callable[[], None]
    ) -> None:
        self._directory = directory
        self._tools = tools
        self._make_id = make_id
        self._told = entered
        self._submitting: dict[str, asyncio.Task[JobRecord]] = {}
        self._closed = False

    async def submit(self, request_id: str, spec: job_pb2.JobSpec) -> JobRecord:
        """A new job, or the one that the same request has made before. Raises ServerErrors."""
        if self._closed:
            raise ShuttingDownError("the server is going down; submit again when it is back")
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidRequestError(f"request_id may have {MAX_REQUEST_ID} characters, got {len(request_id)}")
        record = self._directory.by_request(request_id)
        if record is None:
            # A task of its own: the caller may give up, and the same request may come again meanwhile.
            record = await asyncio.shield(self._entering(request_id, spec))
        return record

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
        tools = self._tools
        stored = await tools.journal.by_request(request_id) if request_id else None
        if stored is not None:  # by an earlier call, which could not know
            return self._take_in(JobRecord(stored, last_sequence=1))
        spec = complete(spec)
        violations = check(spec) or [*missing_uploads(spec, tools.uploads), *too_large(spec)]
        if violations:
            raise InvalidSpecError(violations)
        failpoints.hit("server.submit.received")
        job_id = self._make_id()
        if spec.start_from.job:
            await self._hold_start(job_id, spec)
        record = JobRecord(self._new_job(job_id, request_id, spec))
        tools.journal.event(record.id, record.add_event(INFO, "submitted", tools.clock()))
        tools.journal.job(record.stored())
        try:
            await tools.journal.flush()
        except Exception:
            await self._undo(record)
            raise
        failpoints.hit("server.submit.stored")
        return self._take_in(record)

    async def _undo(self, record: JobRecord) -> None:
        """Leave nothing of a job that could not be stored, or of which only the answer was lost.

        A disk that refuses this, too, may have the job; then the same request finds it there, or the next server does.
        """
        self._tools.journal.drop(record.id)
        with contextlib.suppress(ServerError):
            await self._tools.journal.delete(record.id)
            await asyncio.to_thread(self._tools.files(record.id).delete)

    def _take_in(self, record: JobRecord) -> JobRecord:
        self._directory.add(record)
        self._tools.uploads.claim(record.uploads)
        self._told()
        return record

    async def _hold_start(self, job_id: str, spec: job_pb2.JobSpec) -> None:
        """Settle what the job starts from, and hold it before the job is stored: its source may be deleted any time."""
        source = find_source(spec, self._directory)
        tools = self._tools
        file = await asyncio.to_thread(settle_start, spec, source, tools.files(source.id))
        try:
            await asyncio.to_thread(tools.files(job_id).hold_start, file)
        except FileNotFoundError as error:
            message = f"job {source.id} has just dropped the checkpoint of version {spec.start_from.version}; try again"
            raise InvalidSpecError([Violation("start_from.job", message)]) from error

    def _new_job(self, job_id: str, request_id: str, spec: job_pb2.JobSpec) -> StoredJob:
        job = service_pb2.Job(
            id=job_id,
            spec=spec,
            state=State.JOB_STATE_PENDING,
            created=timestamp(self._tools.clock()),
            reproducible=spec.numerics != job_pb2.NUMERICS_ANY,
            started_from_job=spec.start_from.job,
        )
        return StoredJob(place=self._directory.take_place(), request_id=request_id, job=job)
