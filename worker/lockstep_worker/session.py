"""What a worker does for its job, from its first dial to its end: a state machine without I/O, threads and clock.

An event in (a message came, a computation is done, time passed, the stream broke), a list of effects out. Times come
with the events, in seconds. Every stream begins with a hello, and the worker begins on it as a newcomer.

One computation runs at a time; newer work makes it superseded, which whoever computes looks at between shards. While
there is none, the step that most likely comes next is begun with the layers that have come of its version.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from lockstep_proto import failpoints
from lockstep_proto.codec import ParameterChunk
from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_worker.errors import DataError, WorkerError
from lockstep_worker.following import Following, Front, ProtocolError, Task

HEARTBEATS_PER_LEASE = 4  # three may be lost or late before the other end takes this one for dead
REDIAL_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # waits between attempts; the last one repeats
ANSWER_S = 10.0  # for the answer to a hello, which tells the lease


@dataclass(frozen=True, slots=True)
class Job:
    """What a computation needs to know of its job."""

    spec: job_pb2.JobSpec
    chunk_elements: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message on the present stream."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    """The server has welcomed the worker on the present stream."""


@dataclass(frozen=True, slots=True, eq=False)
class Compute:
    """Compute a task, send what comes of it on the present stream, and then say `computed` or `failed`."""

    job: Job
    task: Task
    parameters: npt.NDArray[Any]
    round: int
    prepared: bool  # whether what was prepared last is of this version


@dataclass(frozen=True, slots=True, eq=False)
class Prepare:
    """Go through the first layers of the step that most likely comes next, and then say `computed` or `failed`."""

    job: Job
    front: Front


@dataclass(frozen=True, slots=True)
class Dial:
    """Close the stream, if there is one, and dial after a wait."""

    wait_s: float
    reason: str
    first: bool = True  # after a stream that was of use


@dataclass(frozen=True, slots=True)
class End:
    """Close the stream when all has been sent. Nothing follows."""

    reason: str
    failed: bool = False
    refused: bool = False  # the server will not have this worker again


Effect = Send | Joined | Compute | Prepare | Dial | End
_NOTHING: Sequence[Effect] = ()
_HEARTBEAT = Send(training_pb2.WorkerMessage(heartbeat=training_pb2.Heartbeat()).SerializeToString())


class Session:
    """A worker's knowledge. After an End no event has effects."""

    def __init__(self, hello: training_pb2.WorkerHello) -> None:
        self._hello = Send(training_pb2.WorkerMessage(hello=hello).SerializeToString())
        self._job: Job | None = None
        self._following: Following | None = None
        self._lease_s: float | None = None  # once the server has told it
        self._ended = False
        self._opened_s: float | None = None  # when the present stream was; None without one
        self._welcomed = False  # on the present stream
        self._useful = False  # so was the present stream: something was computed
        self._num_failed = 0  # streams in a row that were of no use
        self._heard_s = self._looked_s = 0.0
        self._position: tuple[int, training_pb2.WorkKind.ValueType] | None = None  # version and kind of the round
        self._round = 0
        self._waiting: deque[Task] = deque()
        self._computing: Compute | Prepare | None = None

    @property
    def period_s(self) -> float:
        """How often `tick` is to be called."""
        return (self._lease_s or 2.0) / HEARTBEATS_PER_LEASE

    def superseded(self, computation: Compute) -> bool:
        """Whether nobody waits for this computation any more. May be asked in another thread."""
        return computation.round != self._round

    # Events.

    def opened(self, now: float) -> Sequence[Effect]:
        """A stream is there to send on, whether or not the server answers."""
        if self._ended:
            return _NOTHING
        self._opened_s = self._looked_s = self._heard_s = now
        self._welcomed = self._useful = False
        return [self._hello]

    def received(self, message: ParameterChunk | training_pb2.ServerMessage, now: float) -> Sequence[Effect]:
        """A message came on the present stream."""
        if self._ended:
            return _NOTHING
        self._heard_s = now
        try:
            if isinstance(message, ParameterChunk):
                failpoints.hit("worker.chunk")
                self._welcome_first().chunk(message)
                return self._next()
            match message.WhichOneof("kind"):
                case "work":
                    return self._work(message.work)
                case "forget":
                    return self._forget()
                case "welcome":
                    failpoints.hit("worker.welcome")
                    return self._welcome(message.welcome)
                case "goodbye":
                    failpoints.hit("worker.goodbye")
                    return self._end(End(message.goodbye.reason, refused=message.goodbye.refused))
        except ProtocolError as error:
            return self.lost(f"the server sent what cannot be: {error}", now)
        return _NOTHING

    def computed(self) -> Sequence[Effect]:
        """The computation is done, or was left off because it was superseded."""
        computation, self._computing = self._computing, None
        self._useful |= isinstance(computation, Compute) and not self.superseded(computation)
        if self._following is not None:
            self._following.give_back()
        return _NOTHING if self._ended else self._next()

    def failed(self, error: Exception) -> Sequence[Effect]:
        """The computation failed: the server is told, and this worker ends. Another one may do better."""
        if self._ended:
            return _NOTHING
        step = f" step {self._computing.task.version}" if isinstance(self._computing, Compute) else ""
        words = f"cannot compute{step}: {_in_words(error)}"
        error_type = error.error_type if isinstance(error, DataError) else service_pb2.ERROR_TYPE_INTERNAL
        failure = training_pb2.WorkerFailure(message=f"a worker {words}", error_type=error_type)
        told = training_pb2.WorkerMessage(failure=failure)
        return [*self._say(told), *self._end(End(words, failed=True))]

    def lost(self, reason: str, now: float) -> Sequence[Effect]:
        """The stream broke, or is of no use any more: dial again."""
        if self._ended:
            return _NOTHING
        lasted = self._opened_s is not None and self._welcomed and now - self._opened_s > 2 * self.period_s
        if self._useful or lasted:
            self._num_failed = 0
        wait_s = REDIAL_S[min(self._num_failed, len(REDIAL_S) - 1)]
        first = self._num_failed == 0
        self._num_failed += 1
        self._opened_s = None
        self._welcomed = self._useful = False
        self._drop_all()
        return [Dial(wait_s, reason, first)]

    def leave(self) -> Sequence[Effect]:
        """The fleet wants this worker to end: the server gives its shards to others."""
        if self._ended:
            return _NOTHING
        leaving = training_pb2.WorkerMessage(leaving=training_pb2.WorkerLeaving())
        return [*self._say(leaving), *self._end(End("told to leave"))]

    def tick(self, now: float) -> Sequence[Effect]:
        """Time passed. Time in which nobody looked, because the process stood still, does not count as silence."""
        stood_still_s = now - self._looked_s - self.period_s
        self._looked_s = now
        if stood_still_s > self.period_s:
            self._heard_s += stood_still_s
        if self._ended or self._opened_s is None:
            return _NOTHING
        limit_s = (self._lease_s or ANSWER_S) if self._welcomed else ANSWER_S
        if now - self._heard_s > limit_s:
            return self.lost(f"heard nothing for {limit_s:g} s", now)
        return [_HEARTBEAT] if self._welcomed else _NOTHING

    # Parts of the above.

    def _welcome(self, welcome: training_pb2.Welcome) -> Sequence[Effect]:
        job = Job(welcome.spec, welcome.chunk_elements)
        if self._following is None or job != self._job:
            self._job, self._following = job, Following(job.spec, job.chunk_elements)
        self._following.restart()
        self._lease_s = welcome.lease_s
        self._welcomed = True
        return [Joined()]

    def _welcome_first(self) -> Following:
        if not self._welcomed or self._following is None:
            raise ProtocolError("parameters or work before a welcome")
        return self._following

    def _work(self, work: training_pb2.Work) -> Sequence[Effect]:
        task = self._welcome_first().work(work)
        position = (work.version, work.kind)
        if position != self._position:
            self._begin_round(position)
        if task is not None:
            self._waiting.append(task)
        return self._next()

    def _forget(self) -> Sequence[Effect]:
        self._welcome_first()
        self._drop_all()
        return _NOTHING

    def _drop_all(self) -> None:
        """Drop the versions, which may lie in memory that the server lent on the stream, and the work."""
        if self._following is not None:
            self._following.restart()
        self._begin_round(None)

    def _begin_round(self, position: tuple[int, training_pb2.WorkKind.ValueType] | None) -> None:
        self._position = position
        self._round += 1
        self._waiting.clear()

    def _next(self) -> Sequence[Effect]:
        job, following = self._job, self._following
        if self._computing is not None or job is None or following is None:
            return _NOTHING
        if self._waiting:
            task, prepared = self._waiting.popleft(), following.fronted
            self._computing = Compute(job, task, following.lend(task.kind), self._round, prepared)
        elif self._welcomed and (front := following.front()) is not None:
            self._computing = Prepare(job, front)
        return _NOTHING if self._computing is None else [self._computing]

    def _say(self, message: training_pb2.WorkerMessage) -> Sequence[Effect]:
        return [Send(message.SerializeToString())] if self._opened_s is not None else _NOTHING

    def _end(self, end: End) -> Sequence[Effect]:
        self._ended = True
        self._drop_all()
        return [end]


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, DataError | WorkerError) else f"{type(error).__name__}: {error}"
