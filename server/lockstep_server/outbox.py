"""What waits to be sent to one worker."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

MAX_VERSIONS = 2  # a worker further behind drops its work and gets the newest version whole


class Outbox:
    """A queue of encoded messages, each with the version it belongs to."""

    def __init__(self) -> None:
        self._messages: deque[tuple[int, bytes]] = deque()
        self._filled = asyncio.Event()
        self._closing = False

    def put(self, version: int, message: bytes) -> None:
        """Queue a message."""
        self._messages.append((version, message))
        self._filled.set()

    def put_if_empty(self, version: int, message: bytes) -> None:
        """Queue a message unless others wait, which say as much."""
        if not self._messages and not self._closing:
            self.put(version, message)

    def behind(self, version: int) -> bool:
        """Whether a message of `version` would be one version too many."""
        return bool(self._messages) and version - self._messages[0][0] >= MAX_VERSIONS

    def clear(self) -> None:
        """Throw away what is queued."""
        self._messages.clear()

    def close(self, message: bytes | None) -> None:
        """Queue the last message, or none, unless that has been done already."""
        if self._closing:
            return
        self._closing = True
        self._filled.set()
        if message is not None:
            self.put(-1, message)

    async def drain(self) -> AsyncIterator[bytes]:
        """Yield the messages as they come, until the last one."""
        while True:
            while self._messages:
                yield self._messages.popleft()[1]
            if self._closing:
                return
            self._filled.clear()
            await self._filled.wait()
