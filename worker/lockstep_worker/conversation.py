"""What a worker and the server say to each other: encoded and decoded, through a stream or through shared memory."""

import logging
from collections.abc import Iterator

from lockstep_proto import codec
from lockstep_proto.codec import NodeChunk, ParameterChunk
from lockstep_proto.v1 import training_pb2
from lockstep_worker.sharing import Memory
from lockstep_worker.stream import CallEndedError, Stream

logger = logging.getLogger(__name__)
_FOUND = training_pb2.WorkerMessage(memory_found=training_pb2.MemoryFound()).SerializeToString()


class Conversation(Stream):
    """A stream, and the memory that the server's welcome told of, if it is there."""

    def __init__(self, server: str) -> None:
        super().__init__(server)
        self._memory: Memory | None = None

    def hear(self, *, wait: bool = True) -> Iterator[ParameterChunk | training_pb2.ServerMessage]:
        """Yield what the next bytes complete, as `receive` does. Raises DecodeError, too.

        Of a chunk in shared memory, `data` is the room of its version, and `place` counts from the room's beginning.
        """
        for message in self.receive(wait=wait):
            decoded = codec.decode_server_message(message)
            if isinstance(decoded, ParameterChunk):
                yield decoded if decoded.place is None else self._found(decoded)
                continue
            if decoded.HasField("welcome"):
                self._find_memory(decoded.welcome)
            yield decoded

    def encode(self, chunk: NodeChunk) -> bytes:
        """Return the message that holds a chunk, or that refers to it. It is to be sent."""
        memory = self._memory
        reference = None if memory is None else memory.write(chunk)
        return codec.encode_node_chunk(chunk) if reference is None else codec.encode_reference(reference)

    def close(self) -> None:
        """Close it, when nobody reads any more, and let the memory go."""
        super().close()
        self._memory = None

    def _found(self, chunk: ParameterChunk) -> ParameterChunk:
        if self._memory is None:
            raise CallEndedError("the server refers to memory that is not shared")
        try:
            return self._memory.found(chunk)
        except ValueError as error:
            raise CallEndedError(f"the server refers to what it does not share: {error}") from error

    def _find_memory(self, welcome: training_pb2.Welcome) -> None:
        if not welcome.HasField("memory"):
            return
        try:
            self._memory = Memory(welcome.memory)
        except (OSError, ValueError) as error:
            logger.info("no memory is shared with the server: %s", error)
        else:
            self.send(_FOUND)
