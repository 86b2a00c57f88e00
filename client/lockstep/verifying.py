"""Recomputes steps of a job from a checkpoint, and compares them with what is recorded, bit for bit."""

import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockstep.calls import CALL_S
from lockstep.comparing import Comparison, Record, compare
from lockstep.errors import JobStateError, LockstepError, WaitTimeoutError
from lockstep.job import Job, JobState
from lockstep.progress import Display, show
from lockstep_proto.rules import MAX_NAME
from lockstep_proto.v1 import job_pb2

if TYPE_CHECKING:
    from lockstep.client import Client

SUFFIX = "-verify"  # of the name of the job that recomputes
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
    plan = Plan.of(job, [checkpoint.version for checkpoint in job.checkpoints()], from_step, to_step)
    with _made_for_the_moment(client, plan.spec(job)) as again:
        display = Display(sys.stderr) if progress else None
        try:
            show(again, display, timeout_s=timeout_s)
        except WaitTimeoutError:
            raise WaitTimeoutError(f"the verification of job {job.id} was not done after {timeout_s:g} s") from None
        if again.state is not JobState.SUCCEEDED:
            reason = f"the job that recomputes it has {again.state}: {again.message}"
            raise JobStateError(f"job {job.id} cannot be verified: {reason}")
        comparison = compare(Record.of(job), Record.of(again))
        return Verification(job.id, again.start_version, plan.to_step, comparison)


@contextmanager
def _made_for_the_moment(client: "Client", spec: job_pb2.JobSpec) -> Iterator[Job]:
    """Submit a job, and delete it in any case.

    It is submitted in a thread, since an interrupt that cut the call off would leave a job whose id nobody knows.
    """
    with ThreadPoolExecutor(1) as thread:
        submitted = thread.submit(client.submit, spec, timeout_s=CALL_S)
        try:
            yield submitted.result()
        finally:
            if submitted.exception() is None:
                _delete(submitted.result())


def _delete(job: Job) -> None:
    try:
        job.delete()
    except LockstepError as error:
        log.warning("job %s (%s) could not be deleted: %s", job.id, job.name, error)
