"""TrainingService: brings a worker's call together with the run of its job."""

from collections.abc import Callable, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError
from grpc import StatusCode

from lockstep_proto import codec, failpoints
from lockstep_proto.v1 import training_pb2
from lockstep_server.outbox import Outbox
from lockstep_server.run import JobRun
from lockstep_server.sharing import Sharing
from lockstep_server.streams import JOB_HAS_ENDED


class Call(Protocol):
    """What carries messages to a worker: it empties the outbox as fast as the worker takes them, and ends with it."""

    def filled(self) -> None:
        """Take note that there is something in the outbox."""

    def listen(self, listens: bool) -> None:
        """Take in what the worker sends, which is so at first, or leave it to the network."""

    def end(self, code: StatusCode, reason: str) -> None:
        """End at once."""


class Exchange:
    """Serves Exchange.

    `find_run` returns the run of a job, None while it does not run; `has_ended` says whether it never will again.
    """

    def __init__(self, find_run: Callable[[str], JobRun | None], has_ended: Callable[[str], bool]) -> None:
        self._find_run = find_run
        self._has_ended = has_ended

    def open(self, call: Call) -> "Conversation":
        """Begin a conversation."""
        return Conversation(self._find_run, self._has_ended, call)


class Conversation:
    """One worker's messages, from its hello on."""

    def __init__(self, find_run: Callable[[str], JobRun | None], has_ended: Callable[[str], bool], call: Call) -> None:
        self.outbox = Outbox(call.filled, call.listen)
        self._find_run = find_run
        self._has_ended = has_ended
        self._call = call
        self._run: JobRun | None = None
        self._worker_id = ""
        self._sharing: Sharing | None = None
        self._ended = False

    def received(self, message: codec.Data) -> None:
        """A message came."""
        if self._ended:
            return
        try:
            decoded = codec.decode_worker_message(self._referred(message))
        except (DecodeError, ValueError) as error:
            self._refuse(StatusCode.INVALID_ARGUMENT, f"a message that cannot be read: {error}")
            return
        if self._sharing is not None and _is_found(decoded):
            self._sharing.found()
        elif self._run is not None:
            self._run.received(self._worker_id, self.outbox, decoded)
        else:
            self._begin(decoded)

    def next(self) -> Sequence[codec.Data]:
        """Take the next message to the worker out of the outbox, in the pieces that are sent; none without one."""
        message = self.outbox.pop()
        if not isinstance(message, codec.ParameterChunk):
            return () if message is None else (message,)
        place = None if self._sharing is None else self._sharing.lend(message.data)
        return codec.encode_parameter_chunk(message) if place is None else (codec.encode_placed_chunk(message, place),)

    def ended(self) -> None:
        """Nothing more comes from the worker, or reaches it."""
        if not self._ended:
            self._ended = True
            self._sharing = None
            if self._run is not None:
                self._run.gone(self._worker_id, self.outbox)

    def _begin(self, first: codec.NodeChunk | training_pb2.WorkerMessage) -> None:
        """Let the worker in, if its job runs."""
        if isinstance(first, codec.NodeChunk) or first.WhichOneof("kind") != "hello":
            self._refuse(StatusCode.INVALID_ARGUMENT, "the first message must be a hello")
            return
        hello = first.hello
        if hello.num_cpus < 1:
            self._refuse(StatusCode.INVALID_ARGUMENT, "a worker has at least one CPU")
            return
        failpoints.hit("server.exchange.hello")
        run = self._find_run(hello.job_id)
        if run is None:
            self._turn_away(hello.job_id)
            return
        self._run, self._worker_id = run, hello.worker_id
        self._sharing = run.join(hello, self.outbox)

    def _turn_away(self, job_id: str) -> None:
        """Answer a worker whose job does not run: whether to dial again depends on whether it ever will."""
        if self._has_ended(job_id):
            self.ended()
            self.outbox.close(JOB_HAS_ENDED)
        else:
            self._refuse(StatusCode.UNAVAILABLE, f"job {job_id} does not run now")

    def _referred(self, message: codec.Data) -> codec.Data:
        """Return the message that another one refers to, or that one itself. Raises DecodeError, ValueError."""
        reference = codec.read_reference(message)
        if reference is None:
            return message
        if self._sharing is None:
            raise ValueError("a reference to memory that is not shared")
        return self._sharing.message(reference)

    def _refuse(self, code: StatusCode, reason: str) -> None:
        self.ended()
        self._call.end(code, reason)


def _is_found(message: codec.NodeChunk | training_pb2.WorkerMessage) -> bool:
    return not isinstance(message, codec.NodeChunk) and message.WhichOneof("kind") == "memory_found"
