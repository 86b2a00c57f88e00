"""Follows a job over a connection that may be lost and found again."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from lockstep.calls import Deadline
from lockstep.errors import ServerUnavailableError, WaitTimeoutError, translate
from lockstep.job import Job
from lockstep.records import Event
from lockstep_proto.v1 import service_pb2

REDIAL_S = 0.5


@dataclass(frozen=True)
class Update:
    """One look at a watched job. `notice` says what happened to the connection, if something did."""

    job: Job
    events: list[Event] = field(default_factory=list)
    notice: str = ""


class Story:
    """What is to be said of a server that goes away and comes back, and of a job that goes back to an earlier step."""

    def __init__(self, address: str, known: Job | None = None) -> None:
        self._address = address
        self._away_since_s: float | None = None
        self._attempt, self._reached = (known.attempt, known.step) if known else (0, 0)
        self._awaits_attempt = False  # a server that came back tells a step of before until it takes the job up

    def lost(self, now_s: float) -> str:
        """The connection is lost, or cannot be made again. Return what is to be said; nothing if it has been."""
        if self._away_since_s is not None:
            return ""
        self._away_since_s = now_s
        return f"the server at {self._address} went away; dialling again"

    def seen(self, job: Job, now_s: float) -> str:
        """The server has told how the job stands. Return what is to be said."""
        said = []
        if self._away_since_s is not None:
            said.append(f"the server at {self._address} is back after {now_s - self._away_since_s:.1f} s")
            self._away_since_s = None
            self._awaits_attempt = True
        if job.attempt > self._attempt:
            self._attempt, self._awaits_attempt = job.attempt, False
        if not self._awaits_attempt:
            if job.step < self._reached:
                total = f" of {job.num_steps}" if job.num_steps else ""
                said.append(f"the job goes on from step {job.step}{total}; it had reached {self._reached}")
            self._reached = job.step
        return "; ".join(said)


def watch(
    call: Callable[..., Any],
    make_job: Callable[[service_pb2.Job], Job],
    job_id: str,
    *,
    address: str,
    after_event: int,
    timeout_s: float | None,
    known: Job | None = None,
) -> Iterator[Update]:
    """Yield the job now and whenever it changes, until it has ended; `call` is JobService.Watch.

    A server that goes away is dialled again. Raises ServerUnavailableError only if it was never there, and
    WaitTimeoutError. `known` is the job from an earlier answer: with it the server has been there.
    """
    deadline = Deadline(timeout_s)
    job = known
    story = Story(address, known)
    while True:
        try:
            request = service_pb2.WatchRequest(job_id=job_id, after_event=after_event)
            for response in call(request, timeout=deadline.left_s):
                job = make_job(response.job)
                after_event = max([after_event, *(event.sequence for event in response.events)])
                events = [Event.from_message(event) for event in response.events]
                yield Update(job, events, story.seen(job, time.monotonic()))
            if job is not None and job.state.ended:
                return
        except grpc.RpcError as error:
            problem = translate(error, address)
            if isinstance(problem, WaitTimeoutError):
                raise _not_ended(job_id, timeout_s) from None
            if not isinstance(problem, ServerUnavailableError) or job is None:
                raise problem from None
        if job is not None and (notice := story.lost(time.monotonic())):
            yield Update(job, [], notice)
        if deadline.is_over:
            raise _not_ended(job_id, timeout_s)
        time.sleep(REDIAL_S)


def _not_ended(job_id: str, timeout_s: float | None) -> WaitTimeoutError:
    return WaitTimeoutError(f"job {job_id} has not ended after {timeout_s:g} s; it goes on")
