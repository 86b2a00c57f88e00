"""A job that runs: carries the effects of its training to streams and listener, and brings it the events."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy.typing as npt

from lockstep_proto import codec, failpoints, numerics, shared
from lockstep_proto.v1 import job_pb2, numerics_pb2, service_pb2, training_pb2
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.crew import TICKS_PER_LEASE
from lockstep_server.effects import Dismiss, Effect, Ended, EpochDone, Forget, Keep, Listen, Notice, Send, StepDone
from lockstep_server.measures import Measures
from lockstep_server.metrics import Metrics
from lockstep_server.outbox import Outbox
from lockstep_server.records import Outcome, RunListener
from lockstep_server.sharing import Rooms, Sharing
from lockstep_server.streams import JOB_HAS_ENDED, Streams, goodbye
from lockstep_server.training import Training

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]


class JobRun:
    """One attempt at one job, on one event loop."""

    def __init__(
        self,
        job_id: str,
        spec: job_pb2.JobSpec,
        *,
        num_rows: int,
        num_validation_rows: int,
        attempt: int,
        start: Checkpoint,
        listener: RunListener,
        lease_s: float,
        checkpoint_s: float,
        max_unsummed_bytes: int,
        far: bool = False,
        shares_memory: bool,
        expelled: Collection[str] = (),
        numerics: numerics_pb2.NumericsFingerprint | None,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job_id = job_id
        self.spec = spec
        self.numerics = numerics
        self._rooms = Rooms(shared.machine() if shares_memory else "")
        self.training = Training(
            spec,
            num_rows=num_rows,
            num_validation_rows=num_validation_rows,
            attempt=attempt,
            start=start,
            lease_s=lease_s,
            checkpoint_s=checkpoint_s,
            max_unsummed_bytes=max_unsummed_bytes,
            far=far,
            room=self._rooms.room,
            now=clock(),
        )
        self._clock = clock
        self._lease_s = lease_s
        self._listener = listener
        self.expelled = set(expelled)  # workers that are not taken in again; the fleet ends their processes
        self.measures = Measures(job_id, metrics, clock())
        self._streams = Streams(job_id)
        self._loop = asyncio.get_running_loop()
        self._ticking = self._loop.create_task(self._tick())
        self._look_at_s = math.inf  # when the training is looked at before the next tick
        self._looking: asyncio.TimerHandle | None = None

    # What a status shows.

    @property
    def phase(self) -> str:
        """What the run is doing, in words."""
        return self.training.phase

    @property
    def step(self) -> int:
        """Steps done."""
        return self.training.version

    @property
    def num_steps(self) -> int:
        """Steps there will be."""
        return self.training.plan.num_steps

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.training.progress.epoch

    @property
    def num_epochs(self) -> int:
        """Epochs there will be."""
        return self.training.plan.num_epochs

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the last step at the present speed."""
        steps_per_s = self.measures.speed.steps_per_s
        return (self.num_steps - self.step) / steps_per_s if steps_per_s > 0 else None

    @property
    def workers(self) -> list[service_pb2.WorkerInfo]:
        """The workers that compute or could; one that was given up does not count, though its stream may drag on."""
        return self._streams.infos(self.training.workers)

    def snapshot(self) -> Checkpoint:
        """Return the present version, whole."""
        return self.training.snapshot()

    def checkpoint_written(self) -> None:
        """Take note that the checkpoint that was due is on disk, or has failed."""
        self.training.keeping.written()

    # What people and the server ask for.

    def stop(self) -> None:
        """End between two versions; the job keeps its model."""
        reason = service_pb2.STOP_REASON_USER
        self._carry(
            self.training.halt(
                Outcome(service_pb2.JOB_STATE_STOPPED, reason, message="stopped by a person"), self._clock()
            )
        )

    def pause(self) -> None:
        """End this attempt between two versions; a later one goes on from there."""
        self._carry(self.training.halt(Outcome(service_pb2.JOB_STATE_PAUSED, message="paused"), self._clock()))

    def end(self, outcome: Outcome) -> None:
        """End at once, at the present version."""
        self._carry(self.training.abandon(outcome))

    def close(self) -> None:
        """Stop looking at the time: nothing follows."""
        self._ticking.cancel()
        if self._looking is not None:
            self._looking.cancel()

    # The exchange with one worker.

    def join(self, hello: training_pb2.WorkerHello, outbox: Outbox) -> Sharing | None:
        """Take a worker in, or say why not. Return the memory that is shared with it, if it is on this machine."""
        refusal = self._refusal(hello)
        if refusal:
            self._listener.event(service_pb2.SEVERITY_WARNING, refusal)
            outbox.close(goodbye(refusal, refused=True))
            return None
        self._streams.begin(hello, outbox)
        sharing = self._rooms.share(hello.machine, self.training.update.chunk_bytes)
        outbox.put(None, self._welcome(sharing))
        with self._defects_end_it():
            self._carry(self.training.worker_joined(hello.worker_id, hello.num_cpus, self._clock()))
            self._workers_changed()
        return sharing

    def received(self, worker_id: str, outbox: Outbox, message: codec.NodeChunk | training_pb2.WorkerMessage) -> None:
        """Take in a message; one that comes on a stream which has been replaced or closed says nothing any more."""
        if not self._streams.has(worker_id, outbox):
            return
        try:
            if isinstance(message, codec.NodeChunk):
                failpoints.hit("server.exchange.read")
                self.measures.num_bytes_in += len(message.data)
                self._carry(self.training.chunk_received(worker_id, message, self._clock()))
                failpoints.hit("server.exchange.taken_in")
            elif self._said(worker_id, message):
                outbox.close(None)
        except Exception as error:
            self._end_for(error)

    def gone(self, worker_id: str, outbox: Outbox) -> None:
        """A worker's stream has ended."""
        if self._streams.has(worker_id, outbox):
            self._streams.end(worker_id)
            with self._defects_end_it():
                self._carry(self.training.worker_lost(worker_id, "its stream ended", self._clock()))
                self._workers_changed()

    def _said(self, worker_id: str, message: training_pb2.WorkerMessage) -> bool:
        """Take in what a worker says of itself. Return whether it was its last word."""
        match message.WhichOneof("kind"):
            case "leaving":
                self._carry(self.training.worker_leaving(worker_id, self._clock()))
                return True
            case "failure":
                told = message.failure
                self._carry(self.training.worker_failed(worker_id, told.error_type, told.message, self._clock()))
            case "finding":
                self._carry(self.training.finding_received(worker_id, message.finding, self._clock()))
            case _:
                self.training.workers.heard(worker_id, self._clock())
        return False

    @contextlib.contextmanager
    def _defects_end_it(self) -> Iterator[None]:
        """Fail the job at an error nobody foresaw, instead of leaving it to wait for ever."""
        try:
            yield
        except Exception as error:
            self._end_for(error)

    def _end_for(self, error: Exception) -> None:
        log.error("a defect ends the job", exc_info=error, extra={"job": self.job_id, "step": self.step})
        message = f"a defect in Lockstep: {error!r}"
        outcome = Outcome(service_pb2.JOB_STATE_FAILED, error_type=service_pb2.ERROR_TYPE_INTERNAL, message=message)
        if self.training.ended:  # the end may be among the effects that were not carried out
            self._carry([Ended(outcome)])
        else:
            self.end(outcome)

    def _refusal(self, hello: training_pb2.WorkerHello) -> str | None:
        """Why a worker may not compute for the job, if so."""
        if hello.worker_id in self.expelled:
            return f"worker {hello.worker_id} is refused: it was given up before; another takes its place"
        difference = self._compare_numerics(hello)
        return difference and f"worker {hello.worker_id} is refused: its numerics differ from the job's in {difference}"

    def _compare_numerics(self, hello: training_pb2.WorkerHello) -> str | None:
        if self.numerics is None:
            self.numerics = hello.numerics
        if self.spec.numerics == job_pb2.NUMERICS_ANY:
            return None
        return numerics.difference(self.numerics, hello.numerics)

    def _welcome(self, sharing: Sharing | None) -> bytes:
        welcome = training_pb2.Welcome(
            attempt=self.training.attempt,
            spec=self.spec,
            chunk_elements=self.training.update.chunking.chunk_elements,
            lease_s=self._lease_s,
            num_rows=self.training.plan.num_rows,
            num_validation_rows=self.training.plan.num_validation_rows,
            memory=None if sharing is None else sharing.place,
        )
        return training_pb2.ServerMessage(welcome=welcome).SerializeToString()

    # Effects.

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / TICKS_PER_LEASE)
            with self._defects_end_it():
                failpoints.hit("server.run.tick")
                self.measures.speed.look(self._clock())
                self._carry(self.training.tick(self._clock()))
                self._workers_changed()
                self._streams.beat()

    def _look(self) -> None:
        self._look_at_s = math.inf
        with self._defects_end_it():
            self._carry(self.training.tick(self._clock()))

    def _look_in_time(self) -> None:
        """Look at the training when it wants that; a look that is planned already for before will plan the next."""
        wanted_s = self.training.look_s
        if wanted_s < self._look_at_s and not self.training.ended:
            if self._looking is not None:
                self._looking.cancel()
            self._look_at_s = wanted_s
            self._looking = self._loop.call_later(max(wanted_s - self._clock(), 0.0), self._look)

    def _carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect)
                case StepDone(record):
                    failpoints.hit("server.step.done")
                    self.measures.step_done(record, self._clock())
                    self._listener.step(record)
                case EpochDone(record):
                    self.measures.epoch_done(record, self.training.update)
                    self._listener.epoch(record)
                case Keep(kept):
                    self._listener.version(kept)
                case Notice(severity, message):
                    self._listener.event(severity, message)
                case Forget(worker_id):
                    self._streams.forget(worker_id)
                case Listen(worker_id, listens):
                    self._streams.listen(worker_id, listens)
                case Dismiss(worker_id, reason, refused):
                    self._streams.dismiss(worker_id, reason, refused=refused)
                    self.expelled.add(worker_id)
                    self._listener.gave_up(worker_id)
                case Ended(outcome):
                    failpoints.hit("server.run.ended")
                    self.close()
                    rewinds = outcome.state == service_pb2.JOB_STATE_RUNNING
                    self._streams.close(None if rewinds else JOB_HAS_ENDED)
                    self.measures.count(self.training)
                    self._listener.ended(outcome)
        self._look_in_time()

    def _send(self, effect: Send) -> None:
        num_sent, behind = self._streams.send(effect)
        self.measures.num_bytes_out += num_sent * effect.num_bytes
        for worker_id in behind:
            self._carry(self.training.worker_behind(worker_id))

    def _workers_changed(self) -> None:
        self.measures.count(self.training)
        self._listener.changed()
