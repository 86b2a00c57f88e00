"""What the fleet does: a state machine without I/O.

It follows the server's orders (all it wishes, each time whole) and what happens in the Ray cluster: an event in, a
list of effects out. Times, in seconds, come with the events.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lockstep_proto.v1 import job_pb2, training_pb2

FIRST_RETRY_S = 0.5  # before a worker that did not live is replaced; doubled with each further one
LONGEST_RETRY_S = 30.0
HEALTHY_S = 10.0  # a worker that lived so long is no sign of something that always fails
ORDERLY_S = 0.5  # a worker ends before the orders that explain it arrive
GRACE_S = 5.0  # for an orderly leave; then the worker is killed
JOIN_S = 60.0  # for a worker to start and reach the server, on a busy machine


@dataclass(frozen=True)
class LoadData:
    """Load a job's data, and say how that went."""

    job_id: str
    spec: job_pb2.JobSpec


@dataclass(frozen=True)
class ForgetData:
    """Stop loading a job's data, and drop what there is."""

    job_id: str


@dataclass(frozen=True)
class StartWorker:
    """Start a worker for a job."""

    job_id: str
    worker_id: str


@dataclass(frozen=True)
class AskToLeave:
    """Ask a worker to leave in order."""

    worker_id: str


@dataclass(frozen=True)
class KillWorker:
    """End a worker's process, if it has not ended by itself."""

    worker_id: str


@dataclass(frozen=True)
class Tell:
    """Tell the server."""

    message: training_pb2.FleetMessage


Effect = LoadData | ForgetData | StartWorker | AskToLeave | KillWorker | Tell


@dataclass
class _Worker:
    started_s: float
    kill_s: float | None = None  # when, if it has been asked to leave
    joined: bool = False  # the server has welcomed it


@dataclass
class _Job:
    spec: job_pb2.JobSpec
    num_workers: int = 0
    outcome: training_pb2.FleetMessage | None = None  # of loading its data, once known
    loaded: bool = False
    workers: dict[str, _Worker] = field(default_factory=dict)
    num_deaths: int = 0  # in a row, of workers that did not live long; those of one start count once
    retry_s: float = 0.0  # none is started before

    @property
    def staying(self) -> list[str]:
        return [worker_id for worker_id, worker in self.workers.items() if worker.kill_s is None]


class Fleet:
    """The fleet's knowledge. `token` makes its worker ids its own; `grace_s` is the time a worker has to leave."""

    def __init__(self, token: str, *, grace_s: float = GRACE_S) -> None:
        self._token = token
        self._grace_s = grace_s
        self._jobs: dict[str, _Job] = {}
        self._num_started = 0
        self._connected_s: float | None = None  # since when, if it is
        self._resources = training_pb2.FleetResources()

    def connected(self, now: float) -> list[Effect]:
        """Tell a server that has just been dialled all it needs to know."""
        self._connected_s = now
        told = [training_pb2.FleetMessage(resources=self._resources)]
        told += [job.outcome for job in self._jobs.values() if job.outcome is not None]
        return [Tell(message) for message in told]

    def disconnected(self) -> None:
        """Take note that there is no server; the workers wait for it."""
        self._connected_s = None

    def resources_changed(self, resources: training_pb2.FleetResources) -> list[Effect]:
        """Take note of what the cluster has."""
        if resources == self._resources:
            return []
        self._resources = resources
        return [Tell(training_pb2.FleetMessage(resources=resources))]

    def ordered(self, orders: Iterable[training_pb2.JobOrder], now: float) -> list[Effect]:
        """Follow the server's orders: begin what is new, change what has changed, end what is not in them."""
        effects: list[Effect] = []
        wanted = {order.job_id: order for order in orders}
        for job_id, order in wanted.items():
            if job_id not in self._jobs:
                self._jobs[job_id] = _Job(order.spec)
                effects.append(LoadData(job_id, order.spec))
            self._jobs[job_id].num_workers = order.num_workers
            effects += self._end_given_up(self._jobs[job_id], order.given_up, now)
            effects += self._adjust(job_id, now)
        for job_id in [job_id for job_id in self._jobs if job_id not in wanted]:
            job = self._jobs.pop(job_id)
            effects += [KillWorker(worker_id) for worker_id in job.workers]
            effects.append(ForgetData(job_id))
        return effects

    def data_loaded(self, loaded: training_pb2.DataLoaded, now: float) -> list[Effect]:
        """Take note that a job's data are there; its workers can start."""
        job = self._jobs.get(loaded.job_id)
        if job is None:
            return []
        job.outcome, job.loaded = training_pb2.FleetMessage(data_loaded=loaded), True
        return [Tell(job.outcome), *self._adjust(loaded.job_id, now)]

    def data_failed(self, failed: training_pb2.DataFailed) -> list[Effect]:
        """Take note that a job cannot have its data."""
        job = self._jobs.get(failed.job_id)
        if job is None:
            return []
        job.outcome = training_pb2.FleetMessage(data_failed=failed)
        return [Tell(job.outcome)]

    def worker_joined(self, worker_id: str) -> None:
        """Take note that the server has welcomed a worker."""
        for job in self._jobs.values():
            if worker_id in job.workers:
                job.workers[worker_id].joined = True

    def worker_ended(self, worker_id: str, error: str | None, now: float) -> list[Effect]:
        """Take note that a worker's process has ended, by an error or in order."""
        found = next(((job_id, job) for job_id, job in self._jobs.items() if worker_id in job.workers), None)
        if found is None:
            return []
        job_id, job = found
        worker = job.workers.pop(worker_id)
        effects: list[Effect] = [KillWorker(worker_id)]  # a process whose work has ended still holds its CPUs
        if worker.kill_s is None:
            _delay_next(job, worker, now, in_order=error is None)
            if error is not None:
                effects.append(_tell_exit(job_id, worker_id, error))
        return effects + self._adjust(job_id, now)

    def tick(self, now: float) -> list[Effect]:
        """Kill those that did not leave or join in time, and replace the dead when their wait is over."""
        effects: list[Effect] = []
        for job_id, job in self._jobs.items():
            overdue = [
                name for name, worker in job.workers.items() if worker.kill_s is not None and worker.kill_s <= now
            ]
            for worker_id in overdue:
                del job.workers[worker_id]
                effects.append(KillWorker(worker_id))
            effects += self._end_unheard(job_id, job, now)
            effects += self._adjust(job_id, now)
        return effects

    def _end_given_up(self, job: _Job, worker_ids: Iterable[str], now: float) -> list[Effect]:
        """End the workers that hang; those that have ended already, or were another fleet's, are none of the job's."""
        effects: list[Effect] = []
        for worker_id in worker_ids:
            worker = job.workers.pop(worker_id, None)
            if worker is not None:
                effects.append(KillWorker(worker_id))
                if worker.kill_s is None:
                    _delay_next(job, worker, now, in_order=False)
        return effects

    def _end_unheard(self, job_id: str, job: _Job, now: float) -> list[Effect]:
        """End the workers that do not reach the server, though it is there."""
        if self._connected_s is None:
            return []
        effects: list[Effect] = []
        for worker_id, worker in list(job.workers.items()):
            since_s = max(worker.started_s, self._connected_s)
            if not worker.joined and worker.kill_s is None and now - since_s > JOIN_S:
                effects += [
                    KillWorker(worker_id),
                    _tell_exit(job_id, worker_id, f"it did not reach the server within {JOIN_S:g} s"),
                ]
                _delay_next(job, job.workers.pop(worker_id), now, in_order=False)
        return effects

    def _adjust(self, job_id: str, now: float) -> list[Effect]:
        """Start or send away workers until the job has as many as it is to have."""
        job = self._jobs[job_id]
        staying = job.staying
        if len(staying) > job.num_workers:
            return [self._ask_to_leave(job, worker_id, now) for worker_id in staying[job.num_workers :]]
        if not job.loaded or now < job.retry_s:
            return []
        return [self._start(job_id, job, now) for _ in range(job.num_workers - len(staying))]

    def _start(self, job_id: str, job: _Job, now: float) -> Effect:
        self._num_started += 1
        worker_id = f"{self._token}-{self._num_started}"
        job.workers[worker_id] = _Worker(now)
        return StartWorker(job_id, worker_id)

    def _ask_to_leave(self, job: _Job, worker_id: str, now: float) -> Effect:
        job.workers[worker_id].kill_s = now + self._grace_s
        return AskToLeave(worker_id)


def _tell_exit(job_id: str, worker_id: str, message: str) -> Tell:
    exited = training_pb2.WorkerExited(job_id=job_id, worker_id=worker_id, message=message)
    return Tell(training_pb2.FleetMessage(worker_exited=exited))


def _delay_next(job: _Job, ended: _Worker, now: float, *, in_order: bool) -> None:
    """Put off the start of the next worker, the longer the more died young."""
    if now - ended.started_s > HEALTHY_S:
        job.num_deaths = 0
    elif ended.started_s >= job.retry_s:
        job.num_deaths += 1
    wait_s = ORDERLY_S if in_order else 0.0
    if job.num_deaths:
        wait_s = min(FIRST_RETRY_S * 2.0 ** min(job.num_deaths - 1, 10), LONGEST_RETRY_S)
    job.retry_s = max(job.retry_s, now + wait_s)
