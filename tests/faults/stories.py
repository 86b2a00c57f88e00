"""What people do with a job while it is under a fault. Each story brings it to its end and returns it."""

import contextlib
import time

from lockstep.errors import JobFailedError, JobStateError, NotFoundError, ServerError, StorageError
from tests.faults import data, task

LONG = {"epochs": 40}  # still under way when another job has come, or a person has done something
WAIT_S = 150.0  # a deadline for a busy machine: seconds are enough for a quiet one
REFUSALS = StorageError, ServerError  # after which people ask again


def submit(cluster, **changes):
    return cluster.submit(task.spec(**changes), (data.X, data.Y), data.VALIDATION, *REFUSALS)


def reach(job, step):
    """Watch until the job has done so many steps."""
    for update in job._client._watch(job.id, timeout_s=WAIT_S, known=job):
        if update.job.step >= step or update.job.state.ended:
            return
    raise AssertionError("the watch ended early")


def until_ended(job):
    """Wait for its end, however it ends."""
    with contextlib.suppress(JobFailedError):
        job.wait(timeout_s=WAIT_S)
    return job


def train(cluster):
    """Nothing."""
    return until_ended(submit(cluster))


def recovery(cluster):
    """The server is killed; the fault comes while it takes the job up again."""
    job = submit(cluster)
    reach(job, 20)
    cluster.server.kill()
    return until_ended(job)


def pause(cluster):
    """It is paused, and resumed."""
    job = submit(cluster, **LONG)
    reach(job, 10)
    cluster.ask(job.pause, *REFUSALS)
    while cluster.ask(job.refresh).state == "paused" or job.state == "pending":
        cluster.ask(job.resume, JobStateError)
    return until_ended(job)


def halt(cluster):
    """The server is asked to end, and started again."""
    job = submit(cluster, **LONG)
    reach(job, 20)
    cluster.server.terminate()
    return until_ended(job)


def second_job(cluster):
    """Another job takes one of its workers, and gives it back."""
    job = submit(cluster, **LONG)
    reach(job, 10)
    second = submit(cluster, epochs=1)
    until_ended(second)
    assert second.digest == task.expected(epochs=1)[0]
    return until_ended(job)


def next_job(cluster):
    """The fault comes by the end of its workers; then comes another job."""
    train(cluster)
    end_s = time.monotonic() + WAIT_S
    while not any(cluster.traces.iterdir()) and time.monotonic() < end_s:
        time.sleep(0.05)
    return train(cluster)


def delete(cluster):
    """Another job is deleted; its files are gone in the end."""
    second = submit(cluster, epochs=1)
    until_ended(second)
    while True:
        try:
            cluster.ask(second.delete, *REFUSALS)
        except NotFoundError:
            break
    job = train(cluster)
    assert [path.name for path in (cluster.directory / "state" / "jobs").iterdir()] == [job.id]
    return job


STORIES = {story.__name__: story for story in (train, recovery, pause, halt, second_job, next_job, delete)}
