"""The Ray actor around a worker: a process of its own, with its shards at hand as Ray objects."""

import threading
from typing import Any

import ray
import threadpoolctl

from lockstep_worker.errors import WorkerError
from lockstep_worker.exchange import Worker
from lockstep_worker.loading import JobData, Shards
from lockstep_worker.ray_errors import in_words
from lockstep_worker.shard import Shard


class WorkerProcess:
    """One worker. A shard is computed on one BLAS thread, always."""

    def __init__(self, worker_id: str, num_cpus: int) -> None:
        threadpoolctl.threadpool_limits(1)
        self._worker_id = worker_id
        self._num_cpus = num_cpus
        self._worker: Worker | None = None
        self._leaving = False
        self._joined = threading.Event()

    def run(self, job_id: str, server: str, data: JobData) -> str:
        """Compute for a job until it ends. Return why it ended, or raise WorkerError."""
        self._worker = Worker(
            self._worker_id,
            job_id,
            server,
            num_cpus=self._num_cpus,
            training=lambda shard: _fetch(data.training, shard),
            validation=lambda shard: _fetch(data.validation, shard),
            joined=self._joined.set,
        )
        if self._leaving:
            self._worker.leave()
        return self._worker.run()

    def join(self) -> None:
        """Return once the server has welcomed the worker."""
        self._joined.wait()

    def leave(self) -> None:
        """Have `run` end soon, in order, even if it has yet to begin: Ray starts calls of two threads in no order."""
        self._leaving = True
        if self._worker is not None:
            self._worker.leave()


def _fetch(shards: Shards, shard: int) -> Shard:
    try:
        return shards.fetch(shard)
    except ray.exceptions.RayError as error:
        raise WorkerError(f"shard {shard} is lost: {in_words(error)}") from error


WorkerActor: Any = ray.remote(WorkerProcess)
