"""Carries a worker's session: threads, the clock and the stream between worker and server.

One thread dials and reads, one ticks, and the calling thread computes. What comes in goes into the session in the
reading thread, under the computation. Chunks are sent as soon as their node is summed, so sending runs under the rest
of the backward pass.
"""

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from lockstep_proto import codec, failpoints, numerics
from lockstep_proto.v1 import training_pb2
from lockstep_worker.engine import Engine
from lockstep_worker.errors import WorkerError
from lockstep_worker.session import Compute, Dial, Effect, End, Job, Joined, Send, Session
from lockstep_worker.shard import Shard
from lockstep_worker.stream import CallEndedError, Stream

logger = logging.getLogger(__name__)
GOODBYE_S = 2.0  # how long the last messages may take to be sent
_LAST = object()


class Worker:
    """Computes for one job until the server says goodbye, or until it is told to leave.

    `joined` is called each time the server has welcomed it.
    """

    def __init__(
        self,
        worker_id: str,
        job_id: str,
        server: str,
        *,
        num_cpus: int,
        training: Callable[[int], Shard],
        validation: Callable[[int], Shard],
        joined: Callable[[], None] = lambda: None,
    ) -> None:
        hello = training_pb2.WorkerHello(
            job_id=job_id,
            worker_id=worker_id,
            host=socket.gethostname(),
            num_cpus=num_cpus,
            numerics=numerics.fingerprint(),
        )
        self._server = server
        self._joined = joined
        self._make_engine: Callable[[Job], Engine] = lambda job: Engine(
            job.spec, job.chunk_elements, training=training, validation=validation, num_cpus=num_cpus
        )
        self._engine: tuple[Job, Engine] | None = None
        self._lock = threading.Lock()  # around the session and what its effects change
        self._session = Session(hello)
        self._stream: Stream | None = None
        self._wait_s = 0.0  # before the next dial
        self._end: End | None = None
        self._ended = threading.Event()
        # (computation, its stream), then None; or what ended another thread
        self._tasks: queue.SimpleQueue[tuple[Compute, Stream] | BaseException | None] = queue.SimpleQueue()

    @property
    def refused(self) -> bool:
        """Whether the server has sent it away for good."""
        return self._end is not None and self._end.refused

    def leave(self) -> None:
        """Have `run` end soon: the server gives the worker's shards to others."""
        with self._lock:
            self._carry(self._session.leave())
        failpoints.hit("worker.leaving")

    def run(self) -> str:
        """Serve the job. Return why it ended; raise WorkerError if that was a computation that failed."""
        threads = [
            threading.Thread(target=self._guard, args=[run], name=f"worker{run.__name__}", daemon=True)
            for run in (self._link, self._tick)
        ]
        for thread in threads:
            thread.start()
        try:
            self._work_off()
            threads[0].join(GOODBYE_S)
        finally:
            self._ended.set()
            with self._lock:
                if self._stream is not None:
                    self._stream.cancel()
            for thread in threads:
                thread.join()
        assert self._end is not None
        if self._end.failed:
            raise WorkerError(self._end.reason)
        return self._end.reason

    # The calling thread.

    def _work_off(self) -> None:
        while (item := self._tasks.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._compute(*item)

    def _compute(self, computation: Compute, stream: Stream) -> None:
        def send(message: bytes) -> None:
            failpoints.hit("worker.send")
            stream.send(message)

        def superseded() -> bool:
            return self._session.superseded(computation)

        try:
            if not superseded():
                failpoints.hit("worker.work")
                engine = self._engine_for(computation.job)
                engine.answer(computation.task, computation.parameters, send, superseded)
                failpoints.hit("worker.sent")
        except Exception as error:
            logger.exception("cannot compute step %d", computation.task.version)
            with self._lock:
                self._carry(self._session.failed(error))
        else:
            with self._lock:
                self._carry(self._session.computed())

    def _engine_for(self, job: Job) -> Engine:
        if self._engine is None or self._engine[0] is not job:
            self._engine = None  # before the next one takes its memory
            self._engine = (job, self._make_engine(job))
        return self._engine[1]

    # The other threads.

    def _guard(self, run: Callable[[], None]) -> None:
        """Have the end of a thread by an error end the worker: without it nothing would go on."""
        try:
            run()
        except BaseException as error:
            self._tasks.put(error)

    def _link(self) -> None:
        while not self._ended.wait(self._wait_s):
            failpoints.hit("worker.dial")
            stream = Stream(self._server)
            with self._lock:
                self._stream = stream
                self._carry(self._session.opened(time.monotonic()))
            failpoints.hit("worker.hello")
            reason = self._read(stream)
            with self._lock:
                if self._stream is stream:
                    self._carry(self._session.lost(reason, time.monotonic()))

    def _read(self, stream: Stream) -> str:
        """Give the session what comes, until nothing more does. Return why."""
        messages = stream.messages()
        try:
            for message in messages:
                failpoints.hit("worker.read")
                decoded = codec.decode_server_message(message)
                with self._lock:
                    if self._stream is not stream:
                        break
                    self._carry(self._session.received(decoded, time.monotonic()))
        except (OSError, CallEndedError) as error:
            return str(error)
        except Exception as error:
            logger.exception("a defect of the exchange")
            return f"a defect: {error!r}"
        finally:
            messages.close()
        return "given up"

    def _tick(self) -> None:
        while not self._ended.wait(self._session.period_s):
            failpoints.hit("worker.heartbeat")
            with self._lock:
                self._carry(self._session.tick(time.monotonic()))

    # Effects; the lock is held.

    def _carry(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message):
                    assert self._stream is not None
                    self._stream.send(message)
                case Joined():
                    self._joined()
                case Compute():
                    assert self._stream is not None
                    self._tasks.put((effect, self._stream))
                case Dial(wait_s, reason, first):
                    log = logger.info if first else logger.debug  # one line, however long it is away
                    log("lost the server at %s: %s; dialling again", self._server, reason)
                    self._wait_s = wait_s
                    if self._stream is not None:
                        self._stream.cancel()
                        self._stream = None
                case End():
                    self._end = effect
                    self._ended.set()
                    if self._stream is not None:
                        self._stream.finish()
                    self._tasks.put(None)
