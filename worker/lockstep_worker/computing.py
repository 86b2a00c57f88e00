"""Carries out a session's computations, one at a time, and knows which of them last long."""

import math
import time
from collections.abc import Callable

from lockstep_proto import failpoints
from lockstep_worker.engine import Encode, Engine
from lockstep_worker.session import Compute, Job, Prepare

LONG_S = 0.003  # under a computation that lasts so long somebody else is to read; to wake another thread costs 0.1 ms


class Computing:
    """Computations with an engine that is kept as long as the job stays the same."""

    def __init__(self, make_engine: Callable[[Job], Engine]) -> None:
        self._make_engine = make_engine
        self._engine: tuple[Job, Engine] | None = None
        self._lasted_s: dict[int | range, float] = {}  # by the kind of work, or layers; its shards change rarely

    def is_long(self, computation: Compute | Prepare) -> bool:
        """Whether a computation is likely to last long: the last one of its kind did, or there was none."""
        return self._lasted_s.get(_kind(computation), math.inf) > LONG_S

    def prepare(self, preparation: Prepare) -> None:
        """Begin what most likely comes next."""
        begun_s = time.monotonic()
        failpoints.hit("worker.prepare")
        self._engine_for(preparation.job).prepare(preparation.front)
        self._lasted_s[_kind(preparation)] = time.monotonic() - begun_s

    def carry_out(
        self, computation: Compute, encode: Encode, send: Callable[[bytes], None], superseded: Callable[[], bool]
    ) -> None:
        """Compute, encode and send, unless nobody waits for it any more. Raises what the computation raises."""
        if superseded():
            return
        begun_s = time.monotonic()
        failpoints.hit("worker.work")
        engine = self._engine_for(computation.job)
        if not computation.prepared:
            engine.forget()
        engine.answer(computation.task, computation.parameters, send, superseded, encode)
        failpoints.hit("worker.sent")
        if not superseded():  # one that was left off says nothing
            self._lasted_s[_kind(computation)] = time.monotonic() - begun_s

    def _engine_for(self, job: Job) -> Engine:
        if self._engine is None or self._engine[0] is not job:
            self._engine = None  # before the next one takes its memory
            self._engine = (job, self._make_engine(job))
        return self._engine[1]


def _kind(computation: Compute | Prepare) -> int | range:
    return computation.task.kind if isinstance(computation, Compute) else computation.front.layers
