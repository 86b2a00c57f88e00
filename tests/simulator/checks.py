"""What must be true of a run when it is over."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from lockstep_proto.v1 import service_pb2
from tests.simulator.client import Client
from tests.simulator.jobs import Case, Expected, digest, expected
from tests.simulator.loop import EPOCH_S

if TYPE_CHECKING:
    from tests.simulator.run import Simulation

State = service_pb2.JobState
MIN_FAULTS = 3
MIN_STEPS = 5


def problems(run: "Simulation") -> list[str]:
    """Everything that is wrong, in words; nothing if all holds."""
    found = [
        f"{client.name}: {problem}"
        for client in run.clients
        if client.job is not None
        for problem in _Job(run, client, run.plan.case).problems()
    ]
    logged = [line for line in run.logged if "failed at step" not in line]  # the end of a job, which is judged above
    return [*found, *run.loop.problems, *run.loop.unseen_errors(), *logged]


def void(run: "Simulation") -> list[str]:
    """Why the run shows nothing, if so."""
    found = []
    if run.num_faults < MIN_FAULTS:
        found.append(f"the run is void: {run.num_faults} faults, not {MIN_FAULTS}")
    if len(run.server.steps) < MIN_STEPS:
        found.append(f"the run is void: {len(run.server.steps)} steps, not {MIN_STEPS}")
    return found


class _Job:
    """What one client found in the end, against what must come of its job."""

    def __init__(self, run: "Simulation", client: Client, case: Case) -> None:
        assert client.job is not None
        self._run = run
        self._client = client
        self._case = case
        self._job = client.job
        self._wanted: Expected = expected(case)

    def problems(self) -> list[str]:
        """All that is wrong."""
        return [*self._end(), *self._steps(), *self._history(), *self._ledger(), *self._models(), *self._events()]

    def _end(self) -> Iterator[str]:
        job, wanted = self._job, self._wanted
        if job.state == State.JOB_STATE_STOPPED and self._client.was_stopped:
            if job.digest and job.digest != wanted.digests[job.step]:
                yield f"the job was stopped at step {job.step} with other bits than that step has"
        elif job.state != State.JOB_STATE_SUCCEEDED:
            if not self._may_fail():
                yield f"the job is {State.Name(job.state)}: {job.message}"
        elif (job.step, job.digest) != (wanted.num_steps, wanted.digests[-1]):
            yield f"the job ended at step {job.step} with digest {job.digest}, not with {wanted.digests[-1]}"

    def _may_fail(self) -> bool:
        """Whether so much went wrong that the job may give up, and says that it was that."""
        corrupt = self._job.error_type == service_pb2.ERROR_TYPE_CORRUPTION and self._run.num_corrupt >= 2
        damaged = "start_from.job cannot be used" in self._job.message and self._run.disk.num_damaged
        return bool(corrupt or damaged)

    def _steps(self) -> Iterator[str]:
        """Within an attempt one step follows the other, and has the numbers that it has without faults.

        Two lives of the server may give one number to their attempts, if the disk did not take it from the first.
        """
        before = (0, 0, -1)
        for job_id, life, attempt, record in self._run.server.steps:
            if job_id != self._job.id:
                continue
            follows = record.step == before[2] + 1 if (life, attempt) == before[:2] else attempt > before[1]
            if not follows and not (life > before[0] and self._run.disk.has_failed and attempt == before[1]):
                yield f"step {record.step} of attempt {attempt} follows step {before[2]} of attempt {before[1]}"
            before = (life, attempt, record.step)
            loss = self._wanted.losses[record.step]
            if not np.isclose(record.loss, loss, rtol=1e-12, atol=0.0):
                yield f"step {record.step} has the loss {record.loss}, not {loss}"

    def _history(self) -> Iterator[str]:
        """It has every step and epoch once, in order, with their numbers.

        A job that was stopped between a crash and the repetition of its last steps has more of them than it shows.
        """
        steps, epochs, first = self._client.history.steps, self._client.history.epochs, self._job.start_version
        last = max(first + len(steps.step), self._job.step)
        if list(steps.step) != list(range(first, last)):
            yield f"the history has the steps {list(steps.step)}, the job has {first} to {self._job.step}"
        elif not np.allclose(steps.loss, self._wanted.losses[first:last], rtol=1e-12, atol=0.0):
            yield "the history has other losses than the steps had"
        elif not np.allclose(steps.gradient_norm, self._wanted.norms[first:last], rtol=1e-6):
            yield "the history has other norms than the steps had"
        numbers = list(epochs.epoch)
        ends = self._wanted.epoch_ends
        to_evaluate = bool(numbers) and ends[numbers[0]] == first > 0  # it started from a version that was yet to be
        all_epochs = [i for i, end in enumerate(ends) if end > first or (to_evaluate and end == first)]
        due = [i for i in all_epochs if ends[i] < self._job.step]  # the last may not be evaluated
        if numbers != all_epochs[: len(numbers)] or len(numbers) < len(due):
            yield f"the history has the epochs {numbers}"
        else:
            yield from self._epoch_losses(numbers)

    def _epoch_losses(self, numbers: list[int]) -> Iterator[str]:
        epochs, wanted = self._client.history.epochs, self._wanted
        kinds = [("losses", epochs.loss, wanted.epoch_losses)]
        if self._case.validation:
            kinds.append(("validation losses", epochs.validation_loss, wanted.validation_losses))
        for name, found, right in kinds:
            if not np.allclose(found, [right[number] for number in numbers], rtol=1e-12, atol=0.0):
                yield f"the history has other {name} than the epochs had"

    def _ledger(self) -> Iterator[str]:
        """It has the digest of every version that an epoch ended with, and no wrong one."""
        found = {entry.version: entry.digest for entry in self._client.ledger.entries}
        for version, digest_ in found.items():
            if digest_ != self._wanted.digests[version]:
                yield f"the ledger has {digest_} for version {version}, not {self._wanted.digests[version]}"
        due = [end for end in self._wanted.epoch_ends if self._job.start_version < end <= self._job.step]
        if missing := [version for version in due if version not in found]:
            yield f"the ledger lacks the versions {missing}"

    def _models(self) -> Iterator[str]:
        if self._job.digest and digest(self._case, _flat(self._client.models.get("last", b""))) != self._job.digest:
            yield "the last model is not the one of the job's digest"
        if self._job.state == State.JOB_STATE_SUCCEEDED and self._case.validation:
            best = digest(self._case, _flat(self._client.models.get("best", b"")))
            if best != self._wanted.best_digest:
                yield "the best model is another than that with the lowest validation loss"

    def _events(self) -> Iterator[str]:
        """Who watches is told of every event that is kept; an end that the disk did not take may come once more."""
        end_us = (EPOCH_S + self._client.ended_s) * 1e6
        told = {event.sequence: event.message for event in self._client.events}
        for event in self._client.kept_events:
            if told.get(event.sequence) != event.message and event.time.ToMicroseconds() < end_us:
                yield f"event {event.sequence} ({event.message}) was told as {told.get(event.sequence)!r}"


def _flat(model: bytes) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """The parameters of a model file, one after the other; nothing if there is none."""
    tensors = safetensors.numpy.load(model) if model else {}
    names = [f"{kind}{layer}" for layer in range(2, 2 + len(tensors) // 2) for kind in "Wb"]
    return np.concatenate([tensors[name].ravel() for name in names]) if tensors else np.zeros(0, np.float32)
