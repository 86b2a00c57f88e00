"""A job in the server's memory: its message, how it came to its state, and who watches it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.job_pb2 import JobSpec
from lockstep_server.checkpoints import Origin
from lockstep_server.lifecycle import ENDED, State, Wish, check_move, name
from lockstep_server.records import Outcome
from lockstep_server.store import StoredJob

if TYPE_CHECKING:
    from lockstep_server.run import JobRun


class Watcher:
    """What one client that watches has not been told yet."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.events: list[service_pb2.Event] = []

    def take(self, after: int) -> list[service_pb2.Event]:
        """The events so far with a larger sequence number, in order and once each; they count as told."""
        told = {event.sequence: event for event in self.events if event.sequence > after}
        self.events.clear()
        return [told[sequence] for sequence in sorted(told)]


@dataclass(frozen=True)
class Absence:
    """What a server that was away finds of a job that ran."""

    away_s: float
    reached: int  # the version that the job had come to


class JobRecord:
    """One job. `job` is what is stored; `snapshot` is what clients see."""

    def __init__(self, stored: StoredJob, last_sequence: int = 0) -> None:
        self.place = stored.place
        self.request_id = stored.request_id
        self.job = stored.job
        self.story = [stored.job.state]
        self.deleted = False
        self.wish = stored.wish
        self.absence: Absence | None = None  # since the job was last taken up
        self._last_sequence = last_sequence
        self._watchers: set[Watcher] = set()

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits."""
        return self.job.id

    @property
    def spec(self) -> JobSpec:
        """The completed spec."""
        return self.job.spec

    @property
    def state(self) -> State.ValueType:
        """Where in its life it is."""
        return self.job.state

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ENDED

    @property
    def uploads(self) -> set[str]:
        """Ids of the uploads it names."""
        named = (self.spec.data.upload, self.spec.validation.upload, self.spec.start_from.model)
        return {upload_id for upload_id in named if upload_id}

    @property
    def origin(self) -> Origin:
        """What its checkpoints say of it."""
        return Origin(
            job_id=self.id,
            spec=self.spec,
            data_fingerprint=self.job.data_fingerprint,
            validation_fingerprint=self.job.validation_fingerprint,
        )

    def stored(self) -> StoredJob:
        """The row to be written: a copy, since the writer is another thread."""
        job = service_pb2.Job()
        job.CopyFrom(self.job)
        return StoredJob(place=self.place, request_id=self.request_id, job=job, wish=self.wish)

    def move(self, to: State.ValueType, time: float) -> None:
        """Go to another state. Raises IllegalTransitionError."""
        check_move(self.id, self.story, to)
        self.story.append(to)
        self.job.state = to
        if to == State.JOB_STATE_RUNNING and not self.job.HasField("started"):
            self.job.started.CopyFrom(timestamp(time))
        if to in ENDED:
            self.job.finished.CopyFrom(timestamp(time))
        self.touch()

    def add_event(self, severity: service_pb2.Severity.ValueType, message: str, time: float) -> service_pb2.Event:
        """A further event, told to those who watch."""
        self._last_sequence += 1
        event = service_pb2.Event(
            sequence=self._last_sequence, time=timestamp(time), severity=severity, message=message
        )
        for watcher in self._watchers:
            watcher.events.append(event)
        self.touch()
        return event

    def name_phase(self, phase: str) -> None:
        """Say in words what it is doing."""
        if self.job.phase != phase:
            self.job.phase = phase
            self.touch()

    def touch(self) -> None:
        """Wake those who watch; cheap enough for every step."""
        for watcher in self._watchers:
            watcher.changed.set()

    @contextmanager
    def watched(self) -> Iterator[Watcher]:
        """A watcher that is told of all that happens from now on."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def refresh(self, run: "JobRun") -> None:
        """Take over how far the run is."""
        job = self.job
        job.phase = run.phase
        job.step, job.num_steps = run.step, run.num_steps
        job.epoch, job.num_epochs = run.epoch, run.num_epochs
        job.rows_per_s = run.measures.speed.rows_per_s
        job.num_workers = len(run.workers)
        job.ClearField("remaining_s")
        if run.remaining_s is not None:
            job.remaining_s = run.remaining_s
        for (
            quantity,
            value,
        ) in run.measures.latest.items():  # what is yet to be measured stays as an earlier run left it
            setattr(job, quantity, value)
        if run.numerics is not None:
            job.numerics.CopyFrom(run.numerics)

    def conclude(self, outcome: Outcome, time: float) -> str:
        """Go to the state of an outcome; returns what people are told of it. Raises IllegalTransitionError."""
        job = self.job
        job.phase = name(outcome.state)
        job.message = outcome.message if outcome.state in ENDED else ""
        job.error_type = outcome.error_type
        job.stop_reason = outcome.stop_reason
        if outcome.state in ENDED or self.wish == Wish.PAUSE:
            self.wish = Wish.NONE
        self.rest()
        self.move(outcome.state, time)
        words = f"{name(outcome.state)} at step {job.step}"
        return f"{words}: {job.message}" if job.message else words

    def rest(self) -> None:
        """Nothing computes for it any more."""
        self.job.num_workers = 0
        self.job.rows_per_s = 0.0
        self.job.ClearField("remaining_s")
        self.touch()


def timestamp(time: float) -> Timestamp:
    """A time in seconds since 1970 as a message."""
    stamp = Timestamp()
    stamp.FromMicroseconds(round(time * 1e6))
    return stamp
