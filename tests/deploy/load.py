"""Jobs that are always under way on a cluster, looked at many times a second."""

import threading
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import lockstep
from lockstep_proto.v1 import service_pb2
from tests.deploy.recovery import Progress

LOOK_S = 0.05
CALL_S = 2.0  # a server that stands still is asked again after it
AWAY = (lockstep.ServerUnavailableError, lockstep.WaitTimeoutError)


@dataclass(frozen=True)
class Look:
    """What the server said at a time; `jobs` are those of this load."""

    time_s: float
    cluster: service_pb2.Cluster
    jobs: list[lockstep.Job]

    @property
    def running(self) -> list[lockstep.Job]:
        return [job for job in self.jobs if job.state == lockstep.JobState.RUNNING]

    def only_on(self, containers: Collection[str]) -> frozenset[str]:
        """The jobs all of whose workers are in the given containers."""
        elsewhere = {worker.job_id for worker in self.cluster.workers if worker.host not in containers}
        return frozenset({worker.job_id for worker in self.cluster.workers} - elsewhere)


@dataclass
class Load:
    """Keeps jobs of the given specs under way, one of each, in a thread of its own, until it is told to `finish`.

    Without specs it only looks.
    """

    address: str
    specs: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)
    jobs: dict[str, lockstep.Job] = field(default_factory=dict)  # all, by their id, as they were last seen
    workers_s: dict[str, float] = field(default_factory=dict)  # when each worker was last seen to be connected

    def __post_init__(self) -> None:
        self._newest: Look | None = None
        self._changed = threading.Condition()
        self._finishing = self._closing = False
        self._error: BaseException | None = None
        self._requests = {name: uuid.uuid4().hex for name in self.specs}
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing = True
        self._thread.join(30.0)

    def finish(self) -> None:
        """Submit no further jobs."""
        self._finishing = True

    def next_look(self, after_s: float, deadline_s: float) -> Look | None:
        """Return the first look after a time, None if there is none before the deadline."""
        with self._changed:
            while self._newest is None or self._newest.time_s <= after_s:
                if self._error is not None:
                    raise self._error
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(left_s)
            return self._newest

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    with lockstep.Client(self.address) as client:
                        while not self._closing:
                            self._look(client)
                            time.sleep(LOOK_S)
                except AWAY:  # a new client dials at once, where an old one waits longer and longer
                    time.sleep(LOOK_S)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _look(self, client: lockstep.Client) -> None:
        jobs = client.list(limit=1000, timeout_s=CALL_S)
        cluster = client.cluster(timeout_s=CALL_S)
        now_s = time.monotonic()
        for job in jobs:
            if job.id not in self.jobs or not self.jobs[job.id].state.ended:
                self.jobs[job.id] = job
                self.progress.look(job.id, job.attempt, job.step, now_s, ended=job.state.ended)
        self.workers_s |= dict.fromkeys((worker.worker_id for worker in cluster.workers), now_s)
        with self._changed:
            self._newest = Look(now_s, cluster, jobs)
            self._changed.notify_all()
        if not self._finishing:
            self._submit(client, jobs)

    def _submit(self, client: lockstep.Client, jobs: list[lockstep.Job]) -> None:
        under_way = {job.name for job in jobs if not job.state.ended}
        for name, spec in self.specs.items():
            if name not in under_way:  # the same request again makes the same job, if its answer was lost
                client.submit(spec, request_id=self._requests[name], timeout_s=CALL_S)
                self._requests[name] = uuid.uuid4().hex
