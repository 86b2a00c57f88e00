"""The end of one job: its last version is kept, its models are saved, and its record says how it ended."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lockstep_proto import failpoints
from lockstep_proto.v1 import service_pb2
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.errors import DiskFullError, ServerError, StorageError
from lockstep_server.job_files import JobFiles
from lockstep_server.job_record import JobRecord
from lockstep_server.keeper import Keeper
from lockstep_server.lifecycle import ENDED, State
from lockstep_server.records import Outcome
from lockstep_server.taking_up import CannotTakeUpError, begin
from lockstep_server.tools import Tools

if TYPE_CHECKING:
    from lockstep_server.run import JobRun

log = logging.getLogger(__name__)
FAILED = State.JOB_STATE_FAILED
Event = Callable[[service_pb2.Severity.ValueType, str], None]


class Ending:
    """Ends one job, or pauses it. `event` takes what people are told."""

    def __init__(self, record: JobRecord, tools: Tools, files: JobFiles, keeper: Keeper, event: Event) -> None:
        self._record = record
        self._tools = tools
        self._files = files
        self._keeper = keeper
        self._event = event

    async def save(self, outcome: Outcome, run: "JobRun | None", start: Checkpoint | None) -> Outcome:
        """Keep the version of the run or, without any, the newest there is; returns what has come of it."""
        failpoints.hit("server.job.saving")
        self._record.name_phase("saving")
        if run is not None:
            checkpoint: Checkpoint | None = run.snapshot()
        else:
            checkpoint = start or await self._keeper.newest()
        if checkpoint is None and outcome.state == State.JOB_STATE_STOPPED:
            checkpoint = await self._beginning()
        if checkpoint is None:
            return outcome
        ends = outcome.state in ENDED
        try:
            digest = await self._keeper.save(checkpoint, models=ends)
        except (DiskFullError, StorageError) as error:
            return self._without_models(outcome, error)
        self._record.job.step = checkpoint.version
        if ends:
            self._record.job.digest = digest
        return outcome

    def conclude(self, outcome: Outcome, run: "JobRun | None") -> None:
        """Go to the state of the outcome, tell it, and have it stored."""
        record = self._record
        if run is not None:
            record.refresh(run)
            run.close()
        words = record.conclude(outcome, self._tools.clock())
        self._event(service_pb2.SEVERITY_ERROR if outcome.state == FAILED else service_pb2.SEVERITY_INFO, words)
        self._tools.journal.job(record.stored())

    def conclude_defect(self, error: Exception) -> Outcome:
        """Fail the job by what nobody foresaw: it does not stay RUNNING for ever."""
        log.error("a defect ended the job", exc_info=error, extra={"job": self._record.id})
        if isinstance(error, ServerError | OSError):
            outcome = Outcome(FAILED, error_type=service_pb2.ERROR_TYPE_STORAGE, message=str(error))
        else:
            message = f"a defect in Lockstep: {error!r}"
            outcome = Outcome(FAILED, error_type=service_pb2.ERROR_TYPE_INTERNAL, message=message)
        if not self._record.ended:
            self.conclude(outcome, None)
        return outcome

    async def let_go(self) -> None:
        """Let go of what the job no longer needs, once it has ended."""
        if self._record.ended:
            with contextlib.suppress(OSError, ServerError):  # retention does the rest
                self._tools.uploads.touch(self._record.uploads)
                await asyncio.to_thread(self._files.drop_start)

    async def _beginning(self) -> Checkpoint | None:
        """Version 0 of a job that a killed server had begun and was to stop; None for one that never ran."""
        if self._record.job.attempt == 0:
            return None
        with contextlib.suppress(CannotTakeUpError):
            job, upload = self._record.stored().job, self._tools.uploads.path
            return (await asyncio.to_thread(begin, job, self._files.start, upload)).checkpoint
        return None

    def _without_models(self, outcome: Outcome, error: Exception) -> Outcome:
        if outcome.state == FAILED:
            self._event(service_pb2.SEVERITY_WARNING, str(error))
            return outcome
        message = self._keeper.way_out(error)
        return Outcome(FAILED, error_type=service_pb2.ERROR_TYPE_STORAGE, message=message)
