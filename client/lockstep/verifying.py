"""Recomputes steps of a job from a checkpoint, and compares them with what is recorded, bit for bit."""

import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockstep.calls import CALL_S, Deadline
from lockstep.comparing import Comparison, Record, compare
from lockstep.errors import JobStateError, LockstepError, WaitTimeoutError
from lockstep.interrupts import Held, held
from lockstep.job import Job, JobState
from lockstep.progress import Display, show
from lockstep_proto.rules import MAX_NAME
from lockstep_proto.v1 import job_pb2

if TYPE_CHECKING:
    from lockstep.client import Client

SUFFIX = "-verify"  # of the name of the job that recomputes
LEAVING_S = 15.0  # for the deletion of the job; the server stops one that runs within 10 s
SETTLING_S = 1.0  # for what watches the job to see that it is deleted
log = logging.getLogger("lockstep")


@dataclass(frozen=True)
class Verification:
    """What came of recomputing a job from version `from_step` to version `to_step`.

    In `comparison`, a is what is recorded and b what was recomputed.
    """

    job_id: str
    from_step: int
    to_step: int
    comparison: Comparison

    @property
    def equal(self) -> bool:
        """Whether every recorded number and digest was met bit for bit."""
        return self.comparison.equal


@dataclass(frozen=True)
class Plan:
    """What to recompute: from the job's checkpoint of version `start`, or as the job began, if that is None."""

    start: int | None
    to_step: int

    @classmethod
    def of(cls, job: Job, kept: Sequence[int], from_step: int | None, to_step: int | None) -> "Plan":
        """Choose among the versions of the kept checkpoints. Raises ValueError and JobStateError."""
        first, last = job.start_version, job.step
        if last == first:
            raise JobStateError(f"job {job.id} has done no step that could be verified")
        if to_step is None:
            to_step = last
        if not first < to_step <= last:
            raise ValueError(f"to must be between {first + 1} and {last}, the job's last step; got {to_step}")
        if from_step is not None and not first <= from_step < to_step:
            raise ValueError(f"from must be between {first} and {to_step - 1}, before the last step; got {from_step}")
        usable = [version for version in kept if first <= version < to_step]
        if from_step is None:
            return cls(min(usable, default=None), to_step)
        return cls(max((version for version in usable if version <= from_step), default=None), to_step)

    def spec(self, job: Job) -> job_pb2.JobSpec:
        """Return the job's own spec, but for its end, and for its beginning where it starts from a checkpoint."""
        spec = job_pb2.JobSpec()
        spec.CopyFrom(job.spec)
        spec.name = job.name[: MAX_NAME - len(SUFFIX)] + SUFFIX
        spec.steps = self.to_step
        if spec.HasField("stopping"):
            spec.stopping.ClearField("wall_time_s")
        if self.start is not None:
            spec.ClearField("initial_parameters")
            spec.start_from.CopyFrom(job_pb2.StartFrom(job=job.id, version=self.start))
        return spec


def verify(
    client: "Client",
    job: Job,
    *,
    from_step: int | None,
    to_step: int | None,
    progress: bool,
    timeout_s: float | None,
) -> Verification:
    """See Client.verify."""
    with held() as signals:
        kept = [checkpoint.version for checkpoint in signals.run(job.checkpoints)]
        plan = Plan.of(job, kept, from_step, to_step)
        with _made_for_the_moment(client, plan.spec(job), signals) as again:
            _follow(again, job, signals, progress=progress, timeout_s=timeout_s)
            comparison = signals.run(lambda: compare(Record.of(job), Record.of(again)))
            return Verification(job.id, again.start_version, plan.to_step, comparison)


def _follow(again: Job, job: Job, signals: Held, *, progress: bool, timeout_s: float | None) -> None:
    """Wait until the job has been recomputed. Raises JobStateError and WaitTimeoutError."""
    display = Display(sys.stderr) if progress else None
    try:
        signals.run(lambda: show(again, display, timeout_s=timeout_s))
    except KeyboardInterrupt:
        if display is not None:
            display.close()  # the end of the job is no news
        raise
    except WaitTimeoutError:
        raise WaitTimeoutError(f"the verification of job {job.id} was not done after {timeout_s:g} s") from None
    if again.state is not JobState.SUCCEEDED:
        reason = f"the job that recomputes it has {again.state}: {again.message}"
        raise JobStateError(f"job {job.id} cannot be verified: {reason}")


@contextmanager
def _made_for_the_moment(client: "Client", spec: job_pb2.JobSpec, signals: Held) -> Iterator[Job]:
    """Submit a job, and delete it in any case: an interrupt waits for the id of what is being submitted."""
    submitted = signals.start(lambda: client.submit(spec, timeout_s=CALL_S))
    try:
        yield signals.wait(submitted)
    finally:
        deadline = Deadline(LEAVING_S)
        wait([submitted], deadline.left_s)
        if not submitted.done():
            log.warning("the server has not answered; a job named %s may have to be deleted", spec.name)
        elif submitted.exception() is None:
            _delete(submitted.result(), deadline)
            signals.settle(SETTLING_S)


def _delete(job: Job, deadline: Deadline) -> None:
    try:
        job.delete(timeout_s=deadline.left_s)
    except LockstepError as error:
        log.warning("job %s (%s) could not be deleted: %s", job.id, job.name, error)
