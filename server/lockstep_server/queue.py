"""Who gets workers: decisions about the job queue, without clock or I/O.

First come, first served, by a job's place. A job gets workers only when its whole minimum fits, and the first that
does not fit blocks those behind it, so nobody starves. What running jobs have above their minimum is given up for
the next in the queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lockstep_proto.v1.job_pb2 import JobSpec


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one running or pending job claims of the cluster."""

    job_id: str
    running: bool
    minimum: int  # workers
    maximum: int  # workers


def claim(job_id: str, spec: JobSpec, *, running: bool) -> Claim:
    """The claim of a job with this completed spec; more workers than shards are of no use."""
    minimum = spec.workers.min
    maximum = max(minimum, min(spec.workers.max, spec.shards))
    return Claim(job_id=job_id, running=running, minimum=minimum, maximum=maximum)


def allot(claims: Sequence[Claim], worker_slots: int) -> dict[str, int]:
    """Workers per job for the claims in order of place; a pending job that is not in the result has to wait.

    A running job is always in it, with fewer workers than its minimum when the cluster has shrunk.
    """
    free = worker_slots
    granted: dict[str, int] = {}
    for job in claims:
        if job.running:
            granted[job.job_id] = min(job.minimum, free)
            free -= granted[job.job_id]
    for job in claims:
        if not job.running:
            if job.minimum > free:
                break
            granted[job.job_id] = job.minimum
            free -= job.minimum
    for job in claims:
        if job.job_id in granted:
            extra = min(job.maximum - granted[job.job_id], free)
            granted[job.job_id] += extra
            free -= extra
    return granted


def pending_phase(claims: Sequence[Claim], job_id: str, worker_slots: int | None) -> str:
    """What a pending job waits for, in words; `worker_slots` is None without a fleet."""
    ahead = [job for job in claims[: _position(claims, job_id)] if not job.running]
    if ahead:
        return f"queued behind {len(ahead)} job{'s' if len(ahead) > 1 else ''}"
    if worker_slots is None:
        return "waiting for a fleet"
    job = claims[_position(claims, job_id)]
    held = sum(min(other.minimum, worker_slots) for other in claims if other.running)
    free = max(0, worker_slots - held)
    return f"waiting for workers: {free} of {job.minimum} (the cluster has room for {worker_slots})"


def waits_for_cluster(claims: Sequence[Claim]) -> str | None:
    """The pending job whose limit `workers.wait_s` counts: it heads the queue and nothing runs that could make room."""
    if any(job.running for job in claims):
        return None
    return claims[0].job_id if claims else None


def _position(claims: Sequence[Claim], job_id: str) -> int:
    return next(i for i, job in enumerate(claims) if job.job_id == job_id)
