"""One job from being taken up to its end: data, run, checkpoints, saved models."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lockstep_proto import failpoints
from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.data_change import DATA_FIELDS, data_change
from lockstep_server.ending import Ending
from lockstep_server.forking import Start
from lockstep_server.job_record import JobRecord
from lockstep_server.keeper import Keeper
from lockstep_server.ledger import LedgerWriter
from lockstep_server.lifecycle import State, Wish
from lockstep_server.records import EpochRecord, KeptVersion, Outcome, StepRecord
from lockstep_server.taking_up import (
    MAX_REWINDS,
    CannotTakeUpError,
    Rewinds,
    already_over,
    next_attempt,
    taken_up,
)
from lockstep_server.tools import Tools

if TYPE_CHECKING:
    from lockstep_server.run import JobRun

log = logging.getLogger(__name__)

INFO, WARNING, ERROR = service_pb2.SEVERITY_INFO, service_pb2.SEVERITY_WARNING, service_pb2.SEVERITY_ERROR
_LOG_LEVELS = {INFO: logging.INFO, WARNING: logging.WARNING, ERROR: logging.ERROR}
STOPPED = Outcome(State.JOB_STATE_STOPPED, service_pb2.STOP_REASON_USER, message="stopped by a person")
AGAIN = Outcome(State.JOB_STATE_RUNNING)  # workers dial again
HALT_S = 20.0  # the server's end is not held up longer by a slow disk; the job then goes on from the checkpoint before


class Supervisor:
    """Supervises one job while it is RUNNING, or brings a job without a run to its end. It is the run's listener."""

    def __init__(self, record: JobRecord, tools: Tools) -> None:
        self.record = record
        self.run: JobRun | None = None
        self._tools = tools
        self._files = tools.files(record.id)
        warn = functools.partial(self.event, WARNING)
        self._ledger = LedgerWriter(record, tools.journal, warn=warn)
        self._keeper = Keeper(
            record,
            self._files,
            tools.journal,
            warn=warn,
            retrying=record.name_phase,
            written=functools.partial(tools.metrics.checkpoint, record.id),
            ledger=self._ledger,
        )
        self._ending = Ending(record, tools, self._files, self._keeper, self.event)
        loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = loop.create_future()
        self._outcome: asyncio.Future[Outcome] = loop.create_future()
        self._rewound: asyncio.Future[tuple[JobRun, str]] = loop.create_future()
        self._concluded = asyncio.Event()
        self._halted = False
        self._start: Checkpoint | None = None  # if there was nothing left to do from there
        self._reached = 0  # before the last rewind
        self._rewinds = Rewinds()
        self._expelled: set[str] = set()
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
        self._halted = True
        if self.concluding:
            await self.concluded(HALT_S)
        elif self.run is not None:
            snapshot = self.run.snapshot()
            self.run.end(AGAIN)  # no step is done that a later server would have to do again
            self.record.refresh(self.run)
            self._tools.journal.job(self.record.stored())
            with contextlib.suppress(TimeoutError):  # the process ends, and the checkpoint before stays the newest
                await asyncio.wait_for(self._keeper.save(snapshot, models=False, patience_s=0.0), HALT_S)

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
            outcome = await self._ending.save(await self._outcome, self.run, self._start)
            self._ending.conclude(outcome, self.run)
        except Exception as error:
            self.end(self._ending.conclude_defect(error))
        failpoints.hit("server.job.concluded")
        await self._tools.journal.try_flush()
        await self._ending.let_go()
        self._concluded.set()

    async def _train(self) -> None:
        await _first(self._loaded, self._outcome)
        while not self.concluding:
            try:
                await self._take_up()
            except CannotTakeUpError as error:
                self.fail(error.error_type, str(error))
            await _first(self._rewound, self._outcome)
            if not self.concluding:
                await self._rewind()

    async def _take_up(self) -> None:
        """Begin a further attempt."""
        start = await next_attempt(self.record, self._tools, self._files, self._keeper, self._ledger)
        if self.concluding or self._halted:
            return
        self._tell_start(start)
        over = already_over(self.record.job, start.checkpoint)
        if over is not None:
            self._start = start.checkpoint
            self.end(over)
            return
        self._run(start.checkpoint)
        if self.record.wish == Wish.STOP:  # asked of a run that has rewound since
            self.stop()
        elif self.record.wish == Wish.PAUSE:
            self.pause()

    def _tell_start(self, start: Start) -> None:
        job, version = self.record.job, start.checkpoint.version
        absence, self.record.absence = self.record.absence, None
        if absence is not None:
            words = taken_up(version, job.attempt, absence.reached, absence.away_s)
        else:
            words = taken_up(version, job.attempt, self._reached)
        self.event(INFO, words)
        if start.words:
            self.event(INFO, start.words)

    def _run(self, start: Checkpoint) -> None:
        job = self.record.job
        self._rewound = asyncio.get_running_loop().create_future()
        self.run = self._tools.make_run(
            job.id,
            job.spec,
            num_rows=job.num_rows,
            num_validation_rows=job.num_validation_rows,
            attempt=job.attempt,
            start=start,
            listener=self,
            expelled=self._expelled,
            numerics=job.numerics if job.HasField("numerics") else None,
        )

    async def _rewind(self) -> None:
        """Let go of a run that cannot trust its last step, to go back to the newest checkpoint."""
        run, message = self._rewound.result()
        run.close()
        self._reached, self._expelled = run.step, run.expelled
        await self._keeper.settled()
        if self._rewinds.allows(run.step):
            self.event(WARNING, f"rewinds: {message}")
        else:
            words = f"{message}; the job has rewound {MAX_REWINDS} times without getting beyond step {run.step}"
            self.fail(service_pb2.ERROR_TYPE_CORRUPTION, words)

    def _ask(self, outcome: Outcome) -> None:
        """Ask the run, which acts between two versions; without workers the last whole version is already there."""
        if self.run is None or not self.run.workers:
            self.end(outcome)
        elif outcome.state == State.JOB_STATE_PAUSED:
            self.run.pause()
        else:
            self.run.stop()

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
        """The training is over, or begins again from its newest checkpoint."""
        if self._halted or self.concluding:
            return
        if outcome.state != State.JOB_STATE_RUNNING:
            self._outcome.set_result(outcome)
        elif self.run is not None:
            run, self.run = self.run, None  # workers that dial again find the next one
            self._rewound.set_result((run, outcome.message))


async def _first(*events: "asyncio.Future[Any]") -> None:
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
