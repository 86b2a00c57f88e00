"""Fakes at the edges of the controller: a run that trains when told to, a clock that stands still, recorded metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from lockstep_proto.layout import Layout, digest
from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.directory import Directory
from lockstep_server.fleet_link import Attachment
from lockstep_server.housekeeping import Housekeeping
from lockstep_server.job_files import JobFiles
from lockstep_server.jobs import Jobs
from lockstep_server.journal import Journal
from lockstep_server.measures import Measures
from lockstep_server.metrics import Metrics
from lockstep_server.records import EpochRecord, KeptVersion, Outcome, StepRecord
from lockstep_server.scheduler import Scheduler
from lockstep_server.settings import Settings
from lockstep_server.store import Store
from lockstep_server.supervisor import Supervisor
from lockstep_server.tools import Tools
from lockstep_server.uploads import Uploads
from lockstep_server.watchdog import Watchdog

FINGERPRINT = NumericsFingerprint(numerics_revision=1, numpy_version="2.4")
NUM_PARAMETERS = 3 * 2 + 2


def make_spec(**changes: Any) -> job_pb2.JobSpec:
    spec = job_pb2.JobSpec(
        name="small",
        network=job_pb2.Network(inputs=3, layers=[job_pb2.Layer(units=2)]),
        loss=job_pb2.LOSS_SQUARED_ERROR,
        batch_size=job_pb2.BatchSize(full=True),
        epochs=100,
        shards=4,
        data=job_pb2.Data(path="rows.csv", target=["y"]),
    )
    spec.workers.SetInParent()
    for name, value in changes.items():
        field, _, inner = name.partition("__")
        if inner:
            setattr(getattr(spec, field), inner, value)
        else:
            setattr(spec, field, value)
    return spec


def step_record(step: int, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {"step": step, "epoch": 0, "loss": 1.0 / (step + 1), "gradient_norm": 0.5}
    values |= {"learning_rate": 0.1, "num_rows": 8, "weight": 8.0}
    values |= {"step_s": 0.01, "compute_s": 0.008, "wait_s": 0.001, "transfer_s": 0.001}
    return StepRecord(**(values | changes))


def epoch_record(epoch: int, **changes: Any) -> EpochRecord:
    values: dict[str, Any] = {"epoch": epoch, "loss": 0.5, "accuracy": 0.75, "duration_s": 1.0}
    values |= {"validation_loss": float("nan"), "validation_accuracy": float("nan")}
    return EpochRecord(**(values | changes))


class FakeRun:
    """A JobRun whose version v has all parameters equal to v."""

    def __init__(self, job_id: str, spec: job_pb2.JobSpec, **arguments: Any) -> None:
        self.job_id = job_id
        self.spec = spec
        self.arguments = arguments
        self.listener: Supervisor = arguments["listener"]
        self.start: Checkpoint = arguments["start"]
        self.step = self.start.version
        self.num_steps, self.epoch, self.num_epochs = 100, 0, 2
        self.numerics: NumericsFingerprint | None = arguments["numerics"]
        self.measures = Measures(job_id, Metrics(), 0.0)
        self.remaining_s: float | None = None
        self.workers: list[service_pb2.WorkerInfo] = []
        self.best_parameters: np.ndarray[Any, Any] | None = None
        self.progress: dict[str, Any] = {}
        self.asked: list[str] = []
        self.closed = False
        self.expelled: set[str] = set()
        self.num_written = 0
        self.ended: list[Outcome] = []

    @property
    def phase(self) -> str:
        return f"step {self.step} of {self.num_steps}"

    def join(self, worker_id: str) -> None:
        self.workers.append(service_pb2.WorkerInfo(worker_id=worker_id, job_id=self.job_id, num_cpus=1))
        self.numerics = self.numerics or FINGERPRINT
        self.listener.changed()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            record = step_record(self.step)
            self.measures.latest["loss"] = record.loss
            self.step += 1
            self.listener.step(record)

    def end(self, state: service_pb2.JobState.ValueType | Outcome, **words: Any) -> None:
        outcome = state if isinstance(state, Outcome) else Outcome(state, **words)
        self.workers.clear()
        self.ended.append(outcome)
        self.listener.ended(outcome)

    def stop(self) -> None:
        self.asked.append("stop")

    def pause(self) -> None:
        self.asked.append("pause")

    def close(self) -> None:
        self.closed = True

    def snapshot(self) -> Checkpoint:
        return Checkpoint(
            version=self.step,
            epoch=0,
            step_in_epoch=self.step,
            parameters=self.parameters(),
            optimizer_state={},
            num_updates=self.step,
            best=self.best_parameters,
            progress=self.progress,
        )

    async def keep(self, *, ends_epoch: bool = False) -> None:
        """A checkpoint is due; it is done with on return."""
        before = self.num_written
        self.listener.version(KeptVersion(self.step, ends_epoch, self.parameters(), self.snapshot()))
        while self.num_written == before:
            await turn()

    def end_epoch(self, *, parameters_of: int | None = None) -> None:
        """The version, or one with the parameters of another, ends an epoch; no checkpoint is due."""
        self.listener.version(KeptVersion(self.step, True, self.parameters(parameters_of), None))

    def parameters(self, of: int | None = None) -> np.ndarray[Any, Any]:
        return np.full(NUM_PARAMETERS, self.step if of is None else of, np.float32)

    def checkpoint_written(self) -> None:
        self.num_written += 1


class FakeMetrics:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, *arguments))


class Bench:
    """A controller on fakes, in a state directory that outlives it."""

    def __init__(self, state: Path, **settings: Any) -> None:
        self.settings = Settings(state_dir=state, **settings)
        self.now = 1_000_000.0
        self.runs: dict[str, FakeRun] = {}
        self.metrics: Any = FakeMetrics()
        self.numerics = FINGERPRINT
        self.patience_s = 10.0
        self.attachment: Attachment | None = None
        self.last_seen_s = self.now

    def open(self) -> None:
        state = self.settings.state_dir
        state.mkdir(exist_ok=True)
        store = Store(state / "lockstep.db")
        self.journal = Journal(store)
        self.uploads = Uploads(state / "uploads", max_bytes=self.settings.max_upload_bytes, clock=self.clock)
        tools = Tools(
            journal=self.journal,
            uploads=self.uploads,
            files=self.files,
            make_run=self.make_run,  # type: ignore[arg-type]  # a fake
            metrics=self.metrics,
            numerics=self.numerics,
            clock=self.clock,
        )
        self.directory = Directory.read(store, last_seen_s=self.last_seen_s, now_s=self.now)
        self.scheduler = Scheduler(self.directory, tools)
        self.jobs = Jobs(self.directory, self.scheduler, tools, patience_s=self.patience_s)
        self.watchdog = Watchdog(self.directory, self.scheduler, self.journal)
        self.housekeeping = Housekeeping(
            self.settings,
            self.directory,
            self.jobs,
            self.watchdog,
            self.journal,
            self.uploads,
            seen=self.seen,
            clock=self.clock,
            monotonic=self.clock,
        )
        self.scheduler.start()

    async def close(self) -> None:
        """As the server ends: orderly."""
        await self.scheduler.halt()
        await self.journal.close()

    def seen(self, now: float) -> None:
        self.last_seen_s = now

    def clock(self) -> float:
        return self.now

    def files(self, job_id: str) -> JobFiles:
        return JobFiles(self.settings.state_dir / "jobs" / job_id, keep_checkpoints=self.settings.keep_checkpoints)

    def make_run(self, job_id: str, spec: job_pb2.JobSpec, **arguments: Any) -> FakeRun:
        self.runs[job_id] = FakeRun(job_id, spec, **arguments)
        return self.runs[job_id]

    # What happens to it

    def fleet(self, worker_slots: int) -> None:
        if self.attachment is None or not self.scheduler.fleet.is_current(self.attachment):
            self.attachment = self.scheduler.fleet.attach()
        resources = training_pb2.FleetResources(worker_slots=worker_slots, cpus_per_worker=1, nodes=1)
        self.scheduler.resources(resources)

    def orders(self) -> dict[str, int]:
        """The newest orders: workers by job."""
        return {order.job_id: order.num_workers for order in self.scheduler.fleet._orders.jobs}

    async def submit(self, request_id: str = "", **changes: Any) -> str:
        return (await self.jobs.submit(request_id, make_spec(**changes))).id

    async def load(self, job_id: str, num_rows: int = 100, num_validation_rows: int = 0) -> FakeRun:
        """The fleet loads the data; the run has begun on return."""
        loaded = training_pb2.DataLoaded(job_id=job_id, num_rows=num_rows, num_validation_rows=num_validation_rows)
        self.scheduler.data_loaded(loaded)
        return await self.running(job_id)

    async def running(self, job_id: str) -> FakeRun:
        while self.scheduler.run(job_id) is None:
            await turn()
        return self.runs[job_id]

    async def state(self, job_id: str, state: service_pb2.JobState.ValueType) -> service_pb2.Job:
        """The job once it is in this state."""
        while self.jobs.get(job_id).state != state or self.scheduler._is_concluding(self.directory.find(job_id)):
            await turn()
        return self.jobs.get(job_id)

    async def events(self, job_id: str) -> list[str]:
        return [event.message for event in await self.journal.events(job_id)]


async def whole(pieces: AsyncIterable[service_pb2.History]) -> service_pb2.History:
    """A history, put together."""
    history = service_pb2.History()
    async for piece in pieces:
        history.MergeFrom(piece)
    return history


async def turn() -> None:
    """Let other tasks and threads go on; the test's timeout ends a wait for what never comes."""
    await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def bench(state: Path, **settings: Any) -> AsyncIterator[Bench]:
    """An open controller that ends in order."""
    made = Bench(state, **settings)
    made.open()
    try:
        yield made
    finally:
        await made.close()


def play(state: Path, scene: Callable[[Bench], Awaitable[None]], **settings: Any) -> None:
    """Run one server's life."""

    async def life() -> None:
        async with bench(state, **settings) as server:
            await scene(server)

    asyncio.run(life())


def digest_of_version(version: int) -> str:
    """The digest of the model that a FakeRun has at a version."""
    return digest(Layout.from_spec(make_spec()), np.full(NUM_PARAMETERS, version, np.float32))
