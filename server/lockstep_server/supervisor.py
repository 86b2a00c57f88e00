"""One job from being taken up to its end: data, run, checkpoints, saved models."""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lockstep_proto import failpoints
from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_server.checkpoints import Checkpoint, Origin
from lockstep_server.data_change import DATA_FIELDS, data_change
from lockstep_server.errors import DiskFullError, ServerError, StorageError
from lockstep_server.job_record import JobRecord
from lockstep_server.keeper import Keeper, SavedModel
from lockstep_server.ledger import LedgerWriter
from lockstep_server.lifecycle import ENDED, State, name
from lockstep_server.records import EpochRecord, KeptVersion, Outcome, StepRecord
from lockstep_server.taking_up import CannotTakeUpError, check_numerics, read_initial_parameters
from lockstep_server.tools import Tools

if TYPE_CHECKING:
    from lockstep_server.run import JobRun

log = logging.getLogger(__name__)

INFO, WARNING, ERROR = service_pb2.SEVERITY_INFO, service_pb2.SEVERITY_WARNING, service_pb2.SEVERITY_ERROR
_LOG_LEVELS = {INFO: logging.INFO, WARNING: logging.WARNING, ERROR: logging.ERROR}
STOPPED = Outcome(State.JOB_STATE_STOPPED, service_pb2.STOP_REASON_USER, message="stopped by a person")
HALT_S = (
    20.0  # the server's end is not held up longer by a slow disk; the job is then trained again from its checkpoint
)


class Supervisor:
    """Supervises one job while it is RUNNING, or brings a job without a run to its end. It is the run's listener."""

    def __init__(self, record: JobRecord, tools: Tools) -> None:
        self.record = record
        self.run: JobRun | None = None
        self._tools = tools
        warn = functools.partial(self.event, WARNING)
        self._ledger = LedgerWriter(record, tools.journal, warn=warn)
        self._keeper = Keeper(
            self._origin,
            tools.files(record.id),
            tools.journal,
            warn=warn,
            written=functools.partial(tools.metrics.checkpoint, record.id),
            ledger=self._ledger,
        )
        loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = loop.create_future()
        self._outcome: asyncio.Future[Outcome] = loop.create_future()
        self._concluded = asyncio.Event()
        self._saved: SavedModel | None = None
        self._seen_workers: set[str] = set()
        self.on_gave_up: Callable[[], None] = lambda: None
        if record.job.num_rows:  # known from an earlier attempt: its workers may be redialling already
            self._loaded.set_result(None)

    # What is asked of it

    @property
    def concluding(self) -> bool:
        """Whether the training is over and what is left is to save it; it needs no workers then."""
        return self._outcome.done()

    @property
    def waits_for_data(self) -> bool:
        """Whether the fleet has yet to load the data."""
        return not self._loaded.done()

    def data_loaded(self, told: training_pb2.DataLoaded) -> None:
        """The fleet has the job's data. Data that changed between two attempts end the job."""
        job = self.record.job
        if not self._loaded.done():
            for field in DATA_FIELDS:
                setattr(job, field, getattr(told, field))
            self.event(INFO, f"data loaded: {job.num_rows} rows, {job.num_validation_rows} for validation")
            self._loaded.set_result(None)
            self._tools.journal.job(self.record.stored())
        elif changed := data_change(job, told):
            message = f"the data changed while the job was under way: {changed}; submit it again"
            self.fail(service_pb2.ERROR_TYPE_DATA_INVALID, message)

    def worker_exited(self, worker_id: str, message: str) -> None:
        """A worker's process ended. The run has warned already of one that it knew."""
        known = worker_id in self._seen_workers
        self.event(INFO if known else WARNING, f"worker {worker_id} ended: {message}")

    def stop(self) -> None:
        """End the training at a whole version, and keep its model."""
        self._ask(STOPPED)

    def pause(self) -> None:
        """End the training at a whole version, to be taken up again."""
        self._ask(Outcome(State.JOB_STATE_PAUSED))

    def fail(self, error_type: service_pb2.ErrorType.ValueType, message: str) -> None:
        """End the training now, as failed."""
        self.end(Outcome(State.JOB_STATE_FAILED, error_type=error_type, message=message))

    def end(self, outcome: Outcome) -> None:
        """End the training now, at its last whole version; an end that has come already stays."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)
            if self.run is not None:
                self.run.end(outcome)  # lets go of its workers

    def end_now(self) -> None:
        """Stop without waiting for the version under way."""
        self.end(STOPPED)

    async def halt(self) -> None:
        """Leave the job to a later server: RUNNING, with a checkpoint. What is being saved is saved first."""
        if self.concluding:
            await self.concluded(HALT_S)
        elif self.run is not None:
            await self._keeper.write_last(self.run.checkpoint())
            self.run.close()

    async def concluded(self, timeout_s: float | None = None) -> bool:
        """Wait until the job has left RUNNING and its files are in order."""
        try:
            await asyncio.wait_for(self._concluded.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    # What it does

    async def supervise(self) -> None:
        """Carry the job to where it is not RUNNING."""
        try:
            await self._train()
            outcome = await self._save(await self._outcome)
        except CannotTakeUpError as error:
            outcome = self._failure(error.error_type, str(error))
        except (ServerError, OSError) as error:
            outcome = self._failure(service_pb2.ERROR_TYPE_STORAGE, str(error))
        except Exception as error:
            log.exception("a defect ended the job", extra={"job": self.record.id})
            outcome = self._failure(service_pb2.ERROR_TYPE_INTERNAL, f"a defect in Lockstep: {error!r}")
        self._take_over(outcome)
        failpoints.hit("server.job.concluded")
        await self._tools.journal.try_flush()
        self._concluded.set()

    async def _train(self) -> None:
        events: list[asyncio.Future[Any]] = [self._loaded, self._outcome]
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        if self.concluding:
            return
        job = self.record.job
        check_numerics(job, self._tools.numerics)
        start = await self._keeper.newest()
        await self._ledger.recall(start.version if start else 0)
        initial = None
        if start is None:
            initial = await asyncio.to_thread(read_initial_parameters, job.spec, self._tools.uploads.path)
        job.attempt += 1
        job.server_numerics.CopyFrom(self._tools.numerics)
        self._tools.journal.job(self.record.stored())
        await self._tools.journal.try_flush()  # no later server may give this number to another attempt
        failpoints.hit("server.job.attempt_stored")
        if not self.concluding:
            self._run(start, initial)

    def _run(self, start: Checkpoint | None, initial: Any) -> None:
        job = self.record.job
        self.event(INFO, f"taken up at version {start.version if start else 0} (attempt {job.attempt})")
        self.run = self._tools.make_run(
            job.id,
            job.spec,
            num_rows=job.num_rows,
            num_validation_rows=job.num_validation_rows,
            attempt=job.attempt,
            start=start,
            initial=initial,
            listener=self,
            numerics=job.numerics if job.HasField("numerics") else None,
        )

    async def _save(self, outcome: Outcome) -> Outcome:
        failpoints.hit("server.job.saving")
        self.record.job.phase = "saving"
        self.record.touch()
        checkpoint = await self._keeper.newest() if self.run is None else self.run.checkpoint()
        if checkpoint is None:
            return outcome
        saved = await self._keeper.write_last(checkpoint)
        return (
            outcome if outcome.state == State.JOB_STATE_PAUSED else await self._save_models(outcome, checkpoint, saved)
        )

    async def _save_models(self, outcome: Outcome, checkpoint: Checkpoint, saved: SavedModel) -> Outcome:
        try:
            await self._keeper.write_models(checkpoint)
        except (DiskFullError, StorageError) as error:
            if outcome.state != State.JOB_STATE_FAILED:
                return self._failure(service_pb2.ERROR_TYPE_STORAGE, f"{error}; its model is lost, submit it again")
            self.event(WARNING, str(error))
        else:
            self._saved = saved
        return outcome

    def _origin(self) -> Origin:
        job = self.record.job
        return Origin(
            job_id=job.id,
            spec=job.spec,
            data_fingerprint=job.data_fingerprint,
            validation_fingerprint=job.validation_fingerprint,
        )

    def _take_over(self, outcome: Outcome) -> None:
        record, job = self.record, self.record.job
        if self.run is not None:
            record.refresh(self.run)
            self.run.close()
        if self._saved is not None:
            job.step, job.digest = self._saved.version, self._saved.digest
        job.phase = name(outcome.state)
        job.message = outcome.message if outcome.state in ENDED else ""
        job.error_type = outcome.error_type
        job.stop_reason = outcome.stop_reason
        record.rest()
        words = f"{name(outcome.state)} at step {job.step}"
        self.event(
            ERROR if outcome.state == State.JOB_STATE_FAILED else INFO,
            f"{words}: {job.message}" if job.message else words,
        )
        record.move(outcome.state, self._tools.clock())
        if outcome.state in ENDED:
            self._tools.uploads.touch(record.uploads)
        self._tools.journal.job(record.stored())

    def _ask(self, outcome: Outcome) -> None:
        """Ask the run, which acts between two versions; without workers the last whole version is already there."""
        if self.run is None or not self.run.workers:
            self.end(outcome)
        elif outcome.state == State.JOB_STATE_PAUSED:
            self.run.pause()
        else:
            self.run.stop()

    def _failure(self, error_type: service_pb2.ErrorType.ValueType, message: str) -> Outcome:
        """The end of a training by something outside it; no later end counts."""
        outcome = Outcome(State.JOB_STATE_FAILED, error_type=error_type, message=message)
        self.end(outcome)
        return outcome

    # What the run tells

    def event(self, severity: service_pb2.Severity.ValueType, message: str) -> None:
        """Something happened."""
        if self._concluded.is_set():
            return
        log.log(_LOG_LEVELS[severity], "%s", message, extra={"job": self.record.id, "step": self.record.job.step})
        self._tools.journal.event(self.record.id, self.record.add_event(severity, message, self._tools.clock()))

    def step(self, record: StepRecord) -> None:
        """A step is done."""
        if not self.concluding:
            self._tools.journal.step(self.record.id, record)
            self.record.touch()

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""
        if not self.concluding:
            self._tools.journal.epoch(self.record.id, record)
            self.record.touch()

    def version(self, kept: KeptVersion) -> None:
        """A version is to be kept."""
        if self.run is not None:
            self._keeper.keep(self.run, kept)

    def gave_up(self, worker_id: str) -> None:
        """A worker was given up: the fleet is to hear of it."""
        self.on_gave_up()

    def changed(self) -> None:
        """Its phase or its workers changed."""
        if self.run is not None:
            self._seen_workers.update(worker.worker_id for worker in self.run.workers)
            self._remember_numerics(self.run)
        self.record.touch()

    def _remember_numerics(self, run: "JobRun") -> None:
        """Store the numerics of the first worker: later attempts are held to them."""
        if run.numerics is not None and not self.record.job.HasField("numerics"):
            self.record.job.numerics.CopyFrom(run.numerics)
            self._tools.journal.job(self.record.stored())

    def ended(self, outcome: Outcome) -> None:
        """The training is over."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)
