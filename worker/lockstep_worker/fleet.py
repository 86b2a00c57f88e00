"""What the fleet does: a state machine without I/O.

It follows the server's orders (all it wishes, each time whole) and what happens in the Ray cluster: an event in, a
list of effects out. Times, in seconds, come with the events.

The process of a worker whose job is over becomes a spare, which the next worker to be started takes; spares are made
ahead, too, where the cluster has room. A worker has an id of its own all the same, for the server never meets one that
it has given up again. All processes are of one size, and workers and spares together are never more than the cluster
has slots, so spares are in nobody's way.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lockstep_proto.v1 import job_pb2, training_pb2
from lockstep_worker.fleet_effects import (
    AskToLeave,
    Effect,
    ForgetData,
    KillWorker,
    LoadData,
    StartSpare,
    StartWorker,
    Tell,
)
from lockstep_worker.spares import Spares

FIRST_RETRY_S = 0.5  # before a worker that did not live is replaced; doubled with each further one
LONGEST_RETRY_S = 30.0
HEALTHY_S = 10.0  # a worker that lived so long is no sign of something that always fails
ORDERLY_S = 0.5  # a worker ends before the orders that explain it arrive
GRACE_S = 5.0  # for an orderly leave; then the worker is killed
OVER_S = 1.0  # the same for workers whose job is over: to start another process takes about as long
JOIN_S = 60.0  # for a worker to start and reach the server, on a busy machine


@dataclass
class _Worker:
    started_s: float
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


class Fleet:
    """The fleet's knowledge. `token` makes its worker ids its own; `grace_s` is the time a worker has to leave."""

    def __init__(self, token: str, *, grace_s: float = GRACE_S) -> None:
        self._token = token
        self._grace_s = grace_s
        self._jobs: dict[str, _Job] = {}
        self._leaving: dict[str, float] = {}  # workers that are of no job any more, and when they are killed
        self._spares = Spares()
        self._num_named = 0
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

    def resources_changed(self, resources: training_pb2.FleetResources, now: float) -> list[Effect]:
        """Take note of what the cluster has, and have a process ready for every slot of it."""
        if resources == self._resources:
            return []
        self._resources = resources
        effects: list[Effect] = [Tell(training_pb2.FleetMessage(resources=resources))]
        while self._num_free < 0 and (surplus := self._spares.take()) is not None:
            effects.append(KillWorker(surplus))
        for _ in range(self._num_free):
            name = self._new_name()
            self._spares.keep(name, now)
            effects.append(StartSpare(name))
        return effects

    def ordered(self, orders: Iterable[training_pb2.JobOrder], now: float) -> list[Effect]:
        """Follow the server's orders: begin what is new, change what has changed, end what is not in them."""
        wanted = {order.job_id: order for order in orders}
        effects: list[Effect] = []
        for job_id in [job_id for job_id in self._jobs if job_id not in wanted]:
            job = self._jobs.pop(job_id)
            effects += [self._ask_to_leave(worker_id, now + OVER_S) for worker_id in job.workers]
            effects.append(ForgetData(job_id))
        for job_id, order in wanted.items():
            if job_id not in self._jobs:
                self._jobs[job_id] = _Job(order.spec)
                effects.append(LoadData(job_id, order.spec))
            self._jobs[job_id].num_workers = order.num_workers
            effects += self._end_given_up(self._jobs[job_id], order.given_up, now)
        return effects + self._adjust(now)

    def data_loaded(self, loaded: training_pb2.DataLoaded, now: float) -> list[Effect]:
        """Take note that a job's data are there; its workers can start."""
        job = self._jobs.get(loaded.job_id)
        if job is None:
            return []
        job.outcome, job.loaded = training_pb2.FleetMessage(data_loaded=loaded), True
        return [Tell(job.outcome), *self._adjust(now)]

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

    def worker_ended(self, worker_id: str, error: str | None, now: float, *, reusable: bool = False) -> list[Effect]:
        """Take note that a worker has ended, by an error or in order, and whether its process may be another one."""
        found = next(((job_id, job) for job_id, job in self._jobs.items() if worker_id in job.workers), None)
        if found is None and worker_id not in self._leaving:
            return []
        told: list[Effect] = []
        if found is None:
            del self._leaving[worker_id]
        else:
            job_id, job = found
            _delay_next(job, job.workers.pop(worker_id), now, in_order=error is None)
            told = [] if error is None else [_tell_exit(job_id, worker_id, error)]
        return [*self._keep_or_kill(worker_id, now, reusable=reusable), *told, *self._adjust(now)]

    def spare_ended(self, name: str) -> list[Effect]:
        """Take note that the process of a spare has ended; that of a worker is told as the end of the worker."""
        return [KillWorker(name)] if self._spares.drop(name) else []

    def tick(self, now: float) -> list[Effect]:
        """Kill those that did not leave or join in time, and replace the dead when their wait is over."""
        overdue = [worker_id for worker_id, kill_s in self._leaving.items() if kill_s <= now]
        for worker_id in overdue:
            del self._leaving[worker_id]
        effects: list[Effect] = [KillWorker(name) for name in [*overdue, *self._spares.overdue(now)]]
        for job_id, job in self._jobs.items():
            effects += self._end_unheard(job_id, job, now)
        return effects + self._adjust(now)

    def _keep_or_kill(self, worker_id: str, now: float, *, reusable: bool) -> list[Effect]:
        if reusable and self._num_free > 0:
            self._spares.keep(worker_id, now)
            return []
        return [KillWorker(worker_id)]  # a process whose work has ended still holds its CPUs

    @property
    def _num_free(self) -> int:
        """Slots without a process."""
        num_working = sum(len(job.workers) for job in self._jobs.values())
        return self._resources.worker_slots - num_working - len(self._leaving) - len(self._spares)

    def _end_given_up(self, job: _Job, worker_ids: Iterable[str], now: float) -> list[Effect]:
        """End the workers that hang; those that have ended already, or were another fleet's, are none of the job's."""
        effects: list[Effect] = []
        for worker_id in worker_ids:
            if worker_id in job.workers:
                _delay_next(job, job.workers.pop(worker_id), now, in_order=False)
            elif self._leaving.pop(worker_id, None) is None and not self._spares.drop(worker_id):
                continue
            effects.append(KillWorker(worker_id))
        return effects

    def _end_unheard(self, job_id: str, job: _Job, now: float) -> list[Effect]:
        """End the workers that do not reach the server, though it is there."""
        if self._connected_s is None:
            return []
        effects: list[Effect] = []
        for worker_id, worker in list(job.workers.items()):
            since_s = max(worker.started_s, self._connected_s)
            if not worker.joined and now - since_s > JOIN_S:
                effects += [
                    KillWorker(worker_id),
                    _tell_exit(job_id, worker_id, f"it did not reach the server within {JOIN_S:g} s"),
                ]
                _delay_next(job, job.workers.pop(worker_id), now, in_order=False)
        return effects

    def _adjust(self, now: float) -> list[Effect]:
        """Send away workers and start others until every job has as many as it is to have."""
        effects: list[Effect] = []
        for job in self._jobs.values():
            for worker_id in list(job.workers)[job.num_workers :]:
                del job.workers[worker_id]
                effects.append(self._ask_to_leave(worker_id, now + self._grace_s))
        for job_id, job in self._jobs.items():
            while job.loaded and now >= job.retry_s and len(job.workers) < job.num_workers and self._has_room:
                effects.append(self._start(job_id, job, now))
        return effects

    @property
    def _has_room(self) -> bool:
        """Whether there is no reason to wait: in a full cluster for a worker that leaves, which may become a spare."""
        return len(self._spares) > 0 or self._num_free > 0 or not self._leaving

    def _start(self, job_id: str, job: _Job, now: float) -> Effect:
        worker_id = self._new_name()
        job.workers[worker_id] = _Worker(now)
        return StartWorker(job_id, worker_id, self._spares.take())

    def _new_name(self) -> str:
        self._num_named += 1
        return f"{self._token}-{self._num_named}"

    def _ask_to_leave(self, worker_id: str, kill_s: float) -> Effect:
        self._leaving[worker_id] = kill_s
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
