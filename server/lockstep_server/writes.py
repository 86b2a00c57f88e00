"""When connections write what goes to their workers."""

import asyncio
from collections import deque
from typing import Protocol


class Writer(Protocol):
    """Who has something to write."""

    def flush(self) -> None:
        """Write as much as is taken now."""


class Writes:
    """Those that have something to write. They do so when all is done that follows from an event.

    Then all that goes to one worker goes at once. What follows from a message is written before the next one is read.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: deque[Writer] = deque()
        self._is_planned = False

    def add(self, writer: Writer) -> None:
        """Let one write soon, once."""
        self._due.append(writer)
        if not self._is_planned:
            self._plan()

    def begin(self) -> None:
        """Take note that an event is looked at; `end` follows."""
        self._is_planned = True

    def end(self) -> None:
        """Let them write."""
        try:
            while self._due:
                self._due.popleft().flush()
        finally:
            self._is_planned = False
            if self._due:  # the one before has a defect
                self._plan()

    def _plan(self) -> None:
        self._is_planned = True
        self._loop.call_soon(self.end)
