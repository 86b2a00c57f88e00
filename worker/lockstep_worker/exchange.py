"""The stream between a worker and the server.

One thread reads, gRPC's own thread writes, and the calling thread computes. Chunks are queued as soon as their node
is summed, so sending runs under the rest of the backward pass. When the connection is lost the worker dials again
and starts as a newcomer.
"""

import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from lockstep_proto import channels, codec, failpoints, numerics
from lockstep_proto.codec import NodeChunk, ParameterChunk
from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_worker.engine import Engine
from lockstep_worker.errors import DataError
from lockstep_worker.following import Following
from lockstep_worker.shard import Shard

logger = logging.getLogger(__name__)
HEARTBEATS_PER_LEASE = 4  # three may be lost or late before the server takes the worker for dead
REDIAL_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # waits between attempts; the last one repeats
GOODBYE_S = 2.0  # how long the last messages may take to be sent
_END = object()


class Worker:
    """Computes for one job until the server says goodbye, or until it is told to leave."""

    def __init__(
        self,
        worker_id: str,
        job_id: str,
        server: str,
        *,
        num_cpus: int,
        training: Callable[[int], Shard],
        validation: Callable[[int], Shard],
    ) -> None:
        self._hello = training_pb2.WorkerHello(
            job_id=job_id,
            worker_id=worker_id,
            host=socket.gethostname(),
            num_cpus=num_cpus,
            numerics=numerics.fingerprint(),
        )
        self._server = server
        self._num_cpus = num_cpus
        self._training = training
        self._validation = validation
        self._leaving = threading.Event()
        self._session: _Session | None = None

    def leave(self) -> None:
        """Have `run` end soon: the server gives the worker's shards to others."""
        self._leaving.set()
        session = self._session
        if session is not None:
            session.interrupt()

    def run(self) -> str:
        """Serve the job. Return why it ended."""
        attempt = 0
        while not self._leaving.is_set():
            failpoints.hit("worker.dial")
            with channels.connect(self._server) as channel:
                self._session = _Session(channel, self._hello, self._engine, self._leaving)
                try:
                    return self._session.serve()
                except grpc.RpcError as error:
                    attempt = 0 if self._session.welcomed else attempt + 1
                    logger.info("lost the server: %s", _details(error))
            self._leaving.wait(REDIAL_S[min(attempt, len(REDIAL_S) - 1)])
        return "told to leave"

    def _engine(self, welcome: training_pb2.Welcome) -> Engine:
        return Engine(
            welcome.spec,
            welcome.chunk_elements,
            training=self._training,
            validation=self._validation,
            num_cpus=self._num_cpus,
        )


class _Session:
    """One connection, from hello to goodbye."""

    def __init__(
        self,
        channel: grpc.Channel,
        hello: training_pb2.WorkerHello,
        make_engine: Callable[[training_pb2.Welcome], Engine],
        leaving: threading.Event,
    ) -> None:
        self._make_engine = make_engine
        self._leaving = leaving
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._newest_version = -1  # of the Work messages that have been read, if not yet acted on
        self.welcomed = False
        self._send(hello=hello)
        exchange: Any = channel.stream_stream(
            "/lockstep.v1.TrainingService/Exchange",
            request_serializer=None,
            response_deserializer=codec.decode_server_message,
        )
        self._call = exchange(iter(self._outgoing.get, _END))

    def serve(self) -> str:
        """Work off what the server sends. Return the reason of its goodbye; raise RpcError if the stream breaks."""
        failpoints.hit("worker.hello")
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        reader.start()
        try:
            reason = self._work_off()
            self._outgoing.put(_END)
            reader.join(GOODBYE_S)
            return reason
        finally:
            self._outgoing.put(_END)
            self._call.cancel()
            reader.join()

    def interrupt(self) -> None:
        """Wake the computing thread, which then sees that it is to leave."""
        self._incoming.put(None)

    def _read(self) -> None:
        try:
            for message in self._call:
                failpoints.hit("worker.read")
                if not isinstance(message, ParameterChunk) and message.WhichOneof("kind") == "work":
                    self._newest_version = max(self._newest_version, message.work.version)
                self._incoming.put(message)
            self._incoming.put(ConnectionAbortedError("the server closed the stream"))
        except grpc.RpcError as error:
            self._incoming.put(error)

    def _work_off(self) -> str:
        engine: Engine | None = None
        following: Following | None = None
        for message in self._messages():
            if isinstance(message, ParameterChunk):
                assert following is not None
                failpoints.hit("worker.chunk")
                following.chunk(message)
                continue
            kind = message.WhichOneof("kind")
            if kind == "goodbye":
                failpoints.hit("worker.goodbye")
                return str(message.goodbye.reason)
            if kind == "welcome":
                failpoints.hit("worker.welcome")
                self.welcomed = True
                engine = self._make_engine(message.welcome)
                following = Following(message.welcome.spec, message.welcome.chunk_elements)
                self._start_heartbeat(message.welcome.lease_s / HEARTBEATS_PER_LEASE)
            elif kind == "work":
                assert engine is not None
                assert following is not None
                self._compute(engine, following, message.work)
        self._send(leaving=training_pb2.WorkerLeaving())
        failpoints.hit("worker.leaving")
        return "told to leave"

    def _messages(self) -> Iterator[Any]:
        """Yield messages until the worker is to leave; raise what broke the stream."""
        while not self._leaving.is_set():
            message = self._incoming.get()
            if isinstance(message, ConnectionAbortedError):
                raise _StreamClosedError
            if isinstance(message, grpc.RpcError):
                raise message
            if message is not None:
                yield message

    def _compute(self, engine: Engine, following: Following, work: training_pb2.Work) -> None:
        task = following.work(work)
        if task is None or self._superseded(task.version):
            return
        try:
            failpoints.hit("worker.work")
            engine.run(task, following.parameters, self._emit, lambda: self._superseded(task.version))
            failpoints.hit("worker.sent")
        except DataError as error:
            self._send(failure=training_pb2.WorkerFailure(message=error.message, error_type=error.error_type))
        except Exception as error:
            logger.exception("cannot compute step %d", task.version)
            message = f"a worker cannot compute step {task.version}: {type(error).__name__}: {error}"
            failure = training_pb2.WorkerFailure(message=message, error_type=service_pb2.ERROR_TYPE_INTERNAL)
            self._send(failure=failure)

    def _superseded(self, version: int) -> bool:
        return self._newest_version > version or self._leaving.is_set()

    def _emit(self, chunk: NodeChunk) -> None:
        failpoints.hit("worker.send")
        self._outgoing.put(codec.encode_node_chunk(chunk))

    def _send(self, **kind: Any) -> None:
        self._outgoing.put(training_pb2.WorkerMessage(**kind).SerializeToString())

    def _start_heartbeat(self, period_s: float) -> None:
        heartbeat = training_pb2.WorkerMessage(heartbeat=training_pb2.Heartbeat()).SerializeToString()

        def beat() -> None:
            done = threading.Event()
            if not self._call.add_callback(done.set):
                return  # the call has ended already
            while not done.wait(period_s):
                failpoints.hit("worker.heartbeat")
                self._outgoing.put(heartbeat)

        threading.Thread(target=beat, name="heartbeat", daemon=True).start()


class _StreamClosedError(grpc.RpcError):
    """The server closed the stream without a goodbye."""


def _details(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)  # a call's error has them
    return str(details() if details else error)
