"""Carries a worker's session: threads, the clock and the stream between worker and server.

Who is idle reads. The calling thread reads until there is something to compute, computes it and sends, without another
thread in between. While it computes for long, a second thread reads in its place, until that one has come to what is to
be computed next. A third thread ticks. Chunks are sent as soon as their node is summed, so sending runs under the rest
of the computation; and while parameters still come in, the layers that are there are gone through.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from lockstep_proto import failpoints, numerics, shared
from lockstep_proto.v1 import training_pb2
from lockstep_worker.computing import Computing
from lockstep_worker.conversation import Conversation
from lockstep_worker.engine import Engine
from lockstep_worker.errors import WorkerError
from lockstep_worker.session import Compute, Dial, Effect, End, Joined, Prepare, Send, Session
from lockstep_worker.shard import Shard
from lockstep_worker.stream import CallEndedError

logger = logging.getLogger(__name__)
GOODBYE_S = 2.0  # how long the last messages may take to be sent


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
            machine=shared.machine(),
        )
        self._server = server
        self._joined = joined
        self._computing = Computing(
            lambda job: Engine(
                job.spec, job.chunk_elements, training=training, validation=validation, num_cpus=num_cpus
            )
        )
        self._lock = threading.Lock()  # around the session and what its effects change
        self._session = Session(hello)
        self._stream: Conversation | None = None
        self._wait_s = 0.0  # before the next dial
        self._next: tuple[Compute | Prepare, Conversation] | None = None  # to be computed
        self._end: End | None = None
        self._ended = threading.Event()  # nothing follows but the last messages
        self._over = threading.Event()  # they are sent
        self._error: BaseException | None = None  # what ended another thread
        self._reads = threading.Lock()  # held by the thread that reads, and around what follows
        self._read_stream: Conversation | None = None
        self._long = threading.Event()  # a computation may be so long that another thread is to read

    @property
    def refused(self) -> bool:
        """Whether the server has sent it away for good."""
        return self._end is not None and self._end.refused

    def leave(self) -> None:
        """Have `run` end soon: the server gives the worker's shards to others. Not for the handler of a signal."""
        with self._lock:
            self._carry(self._session.leave())
        failpoints.hit("worker.leaving")

    def run(self) -> str:
        """Serve the job. Return why it ended; raise WorkerError if that was a computation that failed."""
        threads = [
            threading.Thread(target=self._guard, args=[run], name=f"worker{run.__name__}", daemon=True)
            for run in (self._relieve, self._tick)
        ]
        for thread in threads:
            thread.start()
        try:
            self._work_off()
        finally:
            self._ended.set()
            self._over.set()
            self._long.set()
            self._cancel()
            for thread in threads:
                thread.join()
            if self._read_stream is not None:
                self._read_stream.close()
        if self._error is not None:
            raise self._error
        assert self._end is not None
        if self._end.failed:
            raise WorkerError(self._end.reason)
        return self._end.reason

    def _cancel(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.cancel()

    # The calling thread.

    def _work_off(self) -> None:
        while not self._ended.is_set():
            self._read_until_work()
            while (work := self._next) is not None:
                self._next = None
                self._compute(*work)
        with self._reads:
            while self._read_stream is not None:
                self._read_on()

    def _compute(self, computation: Compute | Prepare, stream: Conversation) -> None:
        def send(message: bytes) -> None:
            failpoints.hit("worker.send")
            stream.send(message)

        if self._computing.is_long(computation):
            self._long.set()
        try:
            if isinstance(computation, Prepare):
                self._computing.prepare(computation)
            else:
                superseded = partial(self._session.superseded, computation)
                self._computing.carry_out(computation, stream.encode, send, superseded)
        except Exception as error:
            step = "what comes next" if isinstance(computation, Prepare) else f"step {computation.task.version}"
            logger.exception("cannot compute %s", step)
            with self._lock:
                self._carry(self._session.failed(error))
        else:
            with self._lock:
                self._carry(self._session.computed())

    # Whichever thread reads.

    def _read_until_work(self) -> None:
        """Read until there is something to compute and nothing that might supersede it, or nothing will come."""
        with self._reads:
            while not self._ended.is_set() and (self._next is None or self._has_more()):
                self._read_on(wait=self._next is None)

    def _has_more(self) -> bool:
        return self._read_stream is not None and not self._read_stream.drained

    def _read_on(self, *, wait: bool = True) -> None:
        """Begin a stream, or give the session what comes next on the present one."""
        stream = self._read_stream
        if stream is None:
            self._begin_stream()
            return
        reason = self._receive(stream, wait)
        if reason is not None:
            stream.close()
            self._read_stream = None
            with self._lock:
                if self._stream is stream:
                    self._carry(self._session.lost(reason, time.monotonic()))

    def _begin_stream(self) -> None:
        if self._ended.wait(self._wait_s):
            return
        failpoints.hit("worker.dial")
        stream = Conversation(self._server)
        with self._lock:
            if self._ended.is_set():
                return
            self._stream = self._read_stream = stream
            self._carry(self._session.opened(time.monotonic()))
        failpoints.hit("worker.hello")

    def _receive(self, stream: Conversation, wait: bool) -> str | None:
        """Give the session what comes. Return why nothing more does, if so."""
        try:
            for message in stream.hear(wait=wait):
                failpoints.hit("worker.read")
                with self._lock:
                    if self._stream is not stream:
                        return "given up"
                    self._carry(self._session.received(message, time.monotonic()))
        except (OSError, CallEndedError) as error:
            return str(error)
        except Exception as error:
            logger.exception("a defect of the exchange")
            return f"a defect: {error!r}"
        return None

    # The other threads.

    def _guard(self, run: Callable[[], None]) -> None:
        """Have the end of a thread by an error end the worker: without it nothing would go on."""
        try:
            run()
        except BaseException as error:
            self._error = error
            self._ended.set()
            self._cancel()

    def _relieve(self) -> None:
        """Read in the calling thread's place while it computes for long."""
        while not self._ended.is_set():
            self._long.wait()
            self._long.clear()
            self._read_until_work()

    def _tick(self) -> None:
        while not self._ended.wait(self._session.period_s):
            failpoints.hit("worker.heartbeat")
            self._long.set()  # a computation that was thought short may be under way
            with self._lock:
                self._carry(self._session.tick(time.monotonic()))
        if not self._over.wait(GOODBYE_S):
            self._cancel()

    # Effects; the lock is held.

    def _carry(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message):
                    assert self._stream is not None
                    self._stream.send(message)
                case Joined():
                    self._joined()
                case Compute() | Prepare():
                    assert self._stream is not None
                    self._next = (effect, self._stream)
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
