"""What goes out on an HTTP/2 connection: messages as the peer's windows let them, without a copy.

A state machine without I/O: whoever carries it writes `buffers` to the socket and says how much of them has gone.
"""

import itertools
from collections import deque

from lockstep_proto import frames
from lockstep_proto.frames import Kind

Buffer = bytes | memoryview
MAX_BUFFERS = 64  # that are given to the system at once; it takes no more than some hundred


class Outgoing:
    """What is to be written, and the messages of one stream that wait for a window."""

    def __init__(self) -> None:
        self.buffers: deque[Buffer] = deque()
        self.num_bytes = 0  # of them
        self._stream = 0
        self._waiting: deque[deque[Buffer]] = deque()  # messages: what is left of their pieces, the header first
        self._last: bytes | None = None  # follows the last message
        self._connection_window = self._first_window = self._stream_window = frames.FIRST_WINDOW_BYTES
        self._frame_bytes = frames.FIRST_FRAME_BYTES

    @property
    def waits(self) -> bool:
        """Whether a message waits for the peer's window."""
        return bool(self._waiting)

    def control(self, frame: bytes) -> None:
        """Write a frame that no window limits."""
        self.buffers.append(frame)
        self.num_bytes += len(frame)

    def begin(self, stream: int) -> None:
        """Begin a stream; nothing of another one is left."""
        self._stream, self._stream_window = stream, self._first_window
        self._waiting.clear()
        self._last = None

    def message(self, *pieces: Buffer) -> None:
        """Send a message, in one piece or several, which must not change until it has gone."""
        num_bytes = sum(map(len, pieces))
        size = frames.MESSAGE_HEADER_BYTES + num_bytes
        if not self._waiting and size <= min(self._frame_bytes, self._connection_window, self._stream_window):
            self._connection_window -= size
            self._stream_window -= size
            self.buffers.append(frames.headers_of_message(num_bytes, self._stream))
            if num_bytes:
                self.buffers.extend(pieces)
            self.num_bytes += frames.HEADER_BYTES + size
            return
        self._waiting.append(deque((frames.message_header(num_bytes), *pieces)))
        self._go_on()

    def end(self, frame: bytes) -> None:
        """Write a frame when all messages have gone; no message follows."""
        self._last = frame
        self._go_on()

    def next(self) -> list[Buffer]:
        """Return what is to be written next."""
        return list(itertools.islice(self.buffers, MAX_BUFFERS))

    def sent(self, num_bytes: int) -> None:
        """So many bytes of the buffers have been written."""
        buffers = self.buffers
        self.num_bytes -= num_bytes
        if not self.num_bytes:
            buffers.clear()
            return
        while num_bytes:
            first = buffers[0]
            if num_bytes < len(first):
                buffers[0] = memoryview(first)[num_bytes:]
                return
            num_bytes -= len(first)
            buffers.popleft()

    def window(self, stream: int, num_bytes: int) -> None:
        """The peer takes more."""
        if stream == 0:
            self._connection_window += num_bytes
        elif stream == self._stream:
            self._stream_window += num_bytes
        self._go_on()

    def first_window(self, num_bytes: int) -> None:
        """The peer has set what a stream begins with; that changes the present one's window, too."""
        self._stream_window += num_bytes - self._first_window
        self._first_window = num_bytes
        self._go_on()

    def frame_size(self, num_bytes: int) -> None:
        """The peer has set how large a frame may be."""
        self._frame_bytes = num_bytes

    def _go_on(self) -> None:
        while self._waiting:
            room = min(self._frame_bytes, self._connection_window, self._stream_window)
            if room <= 0:
                return
            self._data(room)
        if self._last is not None:
            self.control(self._last)
            self._last = None

    def _data(self, room: int) -> None:
        """Write one frame with the first message, or with a part of it."""
        message = self._waiting[0]
        pieces: list[Buffer] = []
        size = 0
        while message and (size < room or not message[0]):
            piece = message.popleft()
            if size + len(piece) > room:
                view = memoryview(piece)
                message.appendleft(view[room - size :])
                piece = view[: room - size]
            pieces.append(piece)
            size += len(piece)
        if not message:
            self._waiting.popleft()
        self._connection_window -= size
        self._stream_window -= size
        self.buffers.append(frames.header(size, Kind.DATA, 0, self._stream))
        self.buffers.extend(piece for piece in pieces if len(piece))
        self.num_bytes += frames.HEADER_BYTES + size
