"""Cuts the bytes of an HTTP/2 connection into frames and gRPC messages: a state machine without I/O.

Small things are read together into one buffer. The rest of a message that is larger than what that holds is read to
where the message is to lie, so that its bytes are copied out of the socket and not again.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lockstep_proto import frames
from lockstep_proto.frames import Kind

BUFFER_BYTES = 1 << 16
Allocate = Callable[[int], memoryview]


class ConnectionBrokenError(Exception):
    """The peer does not speak HTTP/2 and gRPC, or not within the limits of this connection."""


class Frame(NamedTuple):
    """A frame whose payload is whole. One of DATA stands for the end of its stream alone."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Incoming:
    """What comes. Between `buffer` and `received`, so many bytes are written to the beginning of that buffer.

    `allocate` makes the room for a message of so many bytes that has not come whole.
    """

    def __init__(self, allocate: Allocate, max_message_bytes: int) -> None:
        self.stream = 0  # whose messages are wanted
        self.num_data_bytes = 0  # that count against the windows which the peer was given
        self._allocate = allocate
        self._max_message_bytes = max_message_bytes
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0  # of what is in it
        self._left = 0  # of the payload of the DATA frame under way
        self._ends_stream = self._skips = False  # so does that frame; it belongs to a stream that is over
        self._header = bytearray()  # of the message under way
        self._message: memoryview | None = None
        self._size = self._at = 0

    def buffer(self) -> memoryview:
        """Return where the next bytes go."""
        if self._takes_rest and self._message is not None:
            return self._message[self._at : self._at + self._left]
        return self._buffer[self._end :]

    def wanted(self) -> int:
        """Return how many bytes will come at least; there is nothing to do with a part of them."""
        return len(self.buffer()) if self._takes_rest else 1

    @property
    def _takes_rest(self) -> bool:
        """Whether the next bytes go to where the message is to lie."""
        return self._left > 0 and self._message is not None and not self._skips

    def received(self, num_bytes: int) -> Iterable[Frame | memoryview]:
        """Take in bytes. Return the frames and messages that they complete, to be gone through once.

        Raises ConnectionBrokenError, here or on the way.
        """
        items: list[Frame | memoryview] = []
        if self._takes_rest:
            self._filled(num_bytes, items)
            return self._others(items)
        self._end += num_bytes
        if not (self._left or self._header or self._message is not None):
            self._take_small_messages(items)
            if self._begin == self._end:
                self._begin = self._end = 0
                return items
        return self._others(items)

    def _take_small_messages(self, items: list[Frame | memoryview]) -> None:
        """Take out the messages that have a frame each and are here whole: most of those of a small network."""
        first = frames.HEADER_BYTES + frames.MESSAGE_HEADER_BYTES
        while self._end - self._begin >= first:
            length, kind, flags, stream, compressed, size = frames.read_headers_of_message(self._buffer, self._begin)
            end = self._begin + first + size
            alone = kind == Kind.DATA and size == length - frames.MESSAGE_HEADER_BYTES and stream == self.stream
            if not alone or flags or compressed or end > self._end or size > self._max_message_bytes:
                return
            message = self._allocate(size)
            message[:] = self._buffer[self._begin + first : end]
            items.append(message)
            self.num_data_bytes += length
            self._begin = end

    def _others(self, items: list[Frame | memoryview]) -> Iterator[Frame | memoryview]:
        """Yield these, and what else there is. One is taken in before the next: it may begin the next one's stream."""
        more = True
        while more:
            yield from items
            items.clear()
            more = self._take(items)
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._begin:  # a part of a header or of a small payload
            rest = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, len(rest)
            self._buffer[: self._end] = rest

    def _take(self, items: list[Frame | memoryview]) -> bool:
        """Take one thing out of the buffer. Return whether there was a whole one."""
        if self._left:
            return self._take_data(items)
        begin = self._begin + frames.HEADER_BYTES
        if begin > self._end:
            return False
        length, kind, flags, stream = frames.read_header(self._buffer, self._begin)
        if kind == Kind.DATA:
            self._begin = begin
            self._begin_data(length, flags, stream, items)
            return True
        if frames.HEADER_BYTES + length > BUFFER_BYTES:
            raise ConnectionBrokenError(f"a frame of type {kind} with {length} bytes is too large")
        if begin + length > self._end:
            return False
        items.append(Frame(kind, flags, stream, bytes(self._buffer[begin : begin + length])))
        self._begin = begin + length
        return True

    def _begin_data(self, length: int, flags: int, stream: int, items: list[Frame | memoryview]) -> None:
        if flags & frames.PADDED:
            raise ConnectionBrokenError("padded data, which gRPC never sends")
        self.num_data_bytes += length
        self._left = length
        self._skips = stream != self.stream
        self._ends_stream = bool(flags & frames.END_STREAM)
        if length == 0:
            self._end_of_data(items)

    def _end_of_data(self, items: list[Frame | memoryview]) -> None:
        if self._ends_stream and not self._skips:
            items.append(Frame(Kind.DATA, frames.END_STREAM, self.stream, b""))
            self._begin_message()

    def _take_data(self, items: list[Frame | memoryview]) -> bool:
        have = min(self._end - self._begin, self._left)
        if have == 0:
            return False
        if self._skips:
            self._consume(have, items)
        elif self._message is None:
            self._take_message_header(have, items)
        else:
            have = min(have, self._size - self._at)
            self._message[self._at : self._at + have] = self._buffer[self._begin : self._begin + have]
            self._begin += have
            self._filled(have, items)
        return True

    def _take_message_header(self, have: int, items: list[Frame | memoryview]) -> None:
        have = min(have, frames.MESSAGE_HEADER_BYTES - len(self._header))
        self._header += self._buffer[self._begin : self._begin + have]
        self._consume(have, items)
        if len(self._header) < frames.MESSAGE_HEADER_BYTES:
            return
        compressed, self._size = frames.read_message_header(self._header)
        if compressed:
            raise ConnectionBrokenError("a compressed message")
        if self._size > self._max_message_bytes:
            raise ConnectionBrokenError(f"a message of {self._size} bytes; at most {self._max_message_bytes} are taken")
        self._message = self._allocate(self._size)
        if self._size == 0:
            self._filled(0, items)

    def _filled(self, num_bytes: int, items: list[Frame | memoryview]) -> None:
        """So much more of the message is there."""
        assert self._message is not None
        self._at += num_bytes
        if self._at == self._size:
            items.append(self._message)
            self._begin_message()
        self._left -= num_bytes
        if self._left == 0 and num_bytes:
            self._end_of_data(items)

    def _consume(self, num_bytes: int, items: list[Frame | memoryview]) -> None:
        self._begin += num_bytes
        self._left -= num_bytes
        if self._left == 0:
            self._end_of_data(items)

    def _begin_message(self) -> None:
        self._header = bytearray()
        self._message = None
        self._size = self._at = 0
