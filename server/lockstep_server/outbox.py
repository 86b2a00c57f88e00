"""The server's end of what it says to one worker, and whether it listens to it."""

from collections import deque
from collections.abc import Callable

from lockstep_proto.codec import ParameterChunk

Message = bytes | ParameterChunk
MAX_VERSIONS = 2  # a worker further behind drops its work and gets the newest version whole


class Outbox:
    """A queue of messages, each with the version it belongs to, or None. Chunks of parameters are not encoded yet.

    `filled` tells who empties it; `listen` has what the worker sends taken in, or left where it is.
    """

    def __init__(self, filled: Callable[[], None], listen: Callable[[bool], None] = lambda _: None) -> None:
        self.listen = listen
        self._messages: deque[tuple[int | None, Message]] = deque()
        self._filled = filled
        self._closing = False

    @property
    def over(self) -> bool:
        """Whether the last message has been taken out."""
        return self._closing and not self._messages

    def put(self, version: int | None, message: Message) -> None:
        """Queue a message."""
        self._messages.append((version, message))
        self._filled()

    def put_if_empty(self, message: bytes) -> None:
        """Queue a message unless others wait, which say as much."""
        if not self._messages and not self._closing:
            self.put(None, message)

    def behind(self, version: int) -> bool:
        """Whether a message of `version` would be one version too many."""
        oldest = next((queued for queued, _ in self._messages if queued is not None), version)
        return version - oldest >= MAX_VERSIONS

    def replace(self, message: bytes) -> None:
        """Throw away what is queued of versions, and queue a message that says so, once."""
        self._messages = deque(queued for queued in self._messages if queued[0] is None and queued[1] != message)
        self.put(None, message)

    def close(self, message: bytes | None) -> None:
        """Queue the last message, or none, unless that has been done already."""
        if self._closing:
            return
        self._closing = True
        if message is not None:
            self._messages.append((None, message))
        self._filled()

    def pop(self) -> Message | None:
        """Take out the next message; None if there is none now."""
        return self._messages.popleft()[1] if self._messages else None
