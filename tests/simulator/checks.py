"""What must be true of a run when it is over."""

from typing import TYPE_CHECKING

import numpy as np

from lockstep_proto.v1 import service_pb2
from tests.simulator.jobs import Case, expected
from tests.simulator.loop import EPOCH_S

if TYPE_CHECKING:
    from tests.simulator.run import Simulation

State = service_pb2.JobState
MIN_FAULTS = 3
MIN_STEPS = 5


def problems(run: "Simulation", case: Case) -> list[str]:
    """Everything that is wrong, in words; nothing if all holds."""
    found = [*_end(run, case), *_steps(run, case), *_history(run, case), *_events(run)]
    return [*found, *run.loop.problems, *run.loop.unseen_errors(), *run.logged]


def void(run: "Simulation") -> list[str]:
    """Why the run shows nothing, if so."""
    found = []
    if run.num_faults < MIN_FAULTS:
        found.append(f"the run is void: {run.num_faults} faults, not {MIN_FAULTS}")
    if len(run.server.steps) < MIN_STEPS:
        found.append(f"the run is void: {len(run.server.steps)} steps, not {MIN_STEPS}")
    return found


def _end(run: "Simulation", case: Case) -> list[str]:
    job, wanted = run.client.job, expected(case)
    assert job is not None
    found = []
    if job.state == State.JOB_STATE_STOPPED and run.client.was_stopped:
        if job.digest and job.digest != wanted.digests[job.step]:
            found.append(f"the job was stopped at step {job.step} with other bits than that step has")
        return found
    if job.state == State.JOB_STATE_FAILED and _may_fail(run, job):
        return found
    if job.state != State.JOB_STATE_SUCCEEDED:
        return [f"the job is {State.Name(job.state)}: {job.message}"]
    if job.step != wanted.num_steps:
        found.append(f"the job ended at step {job.step}, not {wanted.num_steps}")
    if job.digest != wanted.digests[-1]:
        found.append(f"the digest is {job.digest}, not {wanted.digests[-1]}")
    return found


def _may_fail(run: "Simulation", job: service_pb2.Job) -> bool:
    """Whether so much went wrong that the job may give up, and says that it was that."""
    return job.error_type == service_pb2.ERROR_TYPE_CORRUPTION and run.num_corrupt >= 2


def _steps(run: "Simulation", case: Case) -> list[str]:
    """Within an attempt one step follows the other, and has the numbers that it has without faults.

    Two lives of the server may give one number to their attempts, if the disk did not take it from the first.
    """
    found, wanted, before = [], expected(case), (0, 0, -1)
    for life, attempt, record in run.server.steps:
        follows = record.step == before[2] + 1 if (life, attempt) == before[:2] else attempt > before[1]
        if not follows and not (life > before[0] and run.disk.has_failed and attempt == before[1]):
            found.append(f"step {record.step} of attempt {attempt} follows step {before[2]} of attempt {before[1]}")
        before = (life, attempt, record.step)
        if not np.isclose(record.loss, wanted.losses[record.step], rtol=1e-12, atol=0.0):
            found.append(f"step {record.step} has the loss {record.loss}, not {wanted.losses[record.step]}")
    return found


def _history(run: "Simulation", case: Case) -> list[str]:
    """The history has every step and epoch once, in order, with their numbers."""
    job, wanted = run.client.job, expected(case)
    assert job is not None
    steps, epochs = run.client.history.steps, run.client.history.epochs
    found = []
    num_steps = len(steps.step)  # more than the job has where it was stopped between a crash and their repetition
    if list(steps.step) != list(range(max(num_steps, job.step))):
        found.append(f"the history has the steps {list(steps.step)}, the job has {job.step}")
    elif not np.allclose(steps.loss, wanted.losses[:num_steps], rtol=1e-12, atol=0.0):
        found.append("the history has other losses than the steps had")
    elif not np.allclose(steps.gradient_norm, wanted.norms[:num_steps], rtol=1e-6):
        found.append("the history has other norms than the steps had")
    if list(epochs.epoch) != list(range(len(epochs.epoch))):
        found.append(f"the history has the epochs {list(epochs.epoch)}")
    if case.validation and not np.allclose(
        epochs.validation_loss, wanted.validation_losses[: len(epochs.epoch)], rtol=1e-12, atol=0.0
    ):
        found.append("the history has other validation losses than the epochs had")
    return found


def _events(run: "Simulation") -> list[str]:
    """Who watches is told of every event that is kept; an end that the disk did not take may come once more."""
    end_s = EPOCH_S + run.client.ended_s
    told = {event.sequence: event.message for event in run.client.events}
    kept = {
        event.sequence: event.message for event in run.client.kept_events if event.time.ToMicroseconds() < end_s * 1e6
    }
    untold = [n for n in kept if told.get(n) != kept[n]]
    return [f"event {n} ({kept[n]}) was told as {told.get(n)!r}" for n in untold]
