"""The Ray actor around workers: a process of its own that is one worker after another, and a spare in between."""

import threading
from typing import Any

import ray
import threadpoolctl

from lockstep_proto import numerics
from lockstep_worker import memory
from lockstep_worker.errors import WorkerError
from lockstep_worker.exchange import Worker
from lockstep_worker.loading import JobData, Shards
from lockstep_worker.ray_errors import in_words
from lockstep_worker.shard import Shard


class _Turn:
    """One worker's time in the process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.leaving = False
        self.joined = threading.Event()


class WorkerProcess:
    """One worker at a time; each has a turn, with a larger number than the one before.

    A shard is computed on one BLAS thread, always. Calls name their turn: Ray starts those of several threads in no
    order.
    """

    def __init__(self, num_cpus: int) -> None:
        threadpoolctl.threadpool_limits(1)
        numerics.fingerprint()  # which is kept: no job has to wait for it
        self._num_cpus = num_cpus
        self._lock = threading.Lock()
        self._turn = _Turn(0)

    def run(self, number: int, worker_id: str, job_id: str, server: str, data: JobData) -> tuple[str, bool]:
        """Compute for a job until it ends. Return why it ended, and whether the process may be another worker now.

        Raises WorkerError.
        """
        turn = self._at(number)
        try:
            return self._serve(turn, worker_id, job_id, server, data)
        finally:
            turn.joined.set()
            memory.give_back()

    def join(self, number: int) -> None:
        """Return once the server has welcomed the worker, or it has ended."""
        self._at(number).joined.wait()

    def leave(self, number: int) -> None:
        """Have `run` end soon, in order, even if it has yet to begin."""
        turn = self._at(number)
        turn.leaving = True
        worker = turn.worker
        if worker is not None:
            worker.leave()

    def live(self) -> None:
        """Never return, so that Ray tells of the end of the process."""
        threading.Event().wait()

    def _at(self, number: int) -> _Turn:
        with self._lock:
            if number > self._turn.number:
                self._turn = _Turn(number)
            if number == self._turn.number:
                return self._turn
        over = _Turn(number)
        over.joined.set()
        return over

    def _serve(self, turn: _Turn, worker_id: str, job_id: str, server: str, data: JobData) -> tuple[str, bool]:
        worker = turn.worker = Worker(
            worker_id,
            job_id,
            server,
            num_cpus=self._num_cpus,
            training=lambda shard: _fetch(data.training, shard),
            validation=lambda shard: _fetch(data.validation, shard),
            joined=turn.joined.set,
        )
        if turn.leaving:
            worker.leave()
        try:
            return worker.run(), not worker.refused
        finally:
            turn.worker = None


def _fetch(shards: Shards, shard: int) -> Shard:
    try:
        return shards.fetch(shard)
    except ray.exceptions.RayError as error:
        raise WorkerError(f"shard {shard} is lost: {in_words(error)}") from error


WorkerActor: Any = ray.remote(WorkerProcess)
