"""A gRPC call on an HTTP/2 connection of its own, from either end: a state machine without I/O.

Everything that gRPC writes for one call with messages in both directions is read and written here, so that either end
can be of another implementation; https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md has the protocol. It
exists because the messages of the exchange are large: here they go from where they are to the socket, and from the
socket to where they are wanted. Calls on one connection follow each other; there are never two at a time.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

import hpack
from grpc import StatusCode

from lockstep_proto import frames
from lockstep_proto.frames import ErrorCode, Kind, Setting
from lockstep_proto.incoming import Allocate, ConnectionBrokenError, Frame, Incoming
from lockstep_proto.outgoing import Buffer, Outgoing

CREDIT_BYTES = frames.LARGEST_WINDOW_BYTES // 2  # the peer's windows are filled up again after so many bytes
_CONTENT = ("content-type", "application/grpc")
_CODES = {code.value[0]: code for code in StatusCode}
Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Opened:
    """A client has begun a call."""

    path: str


@dataclass(frozen=True, slots=True)
class HalfClosed:
    """The client sends nothing more on its call."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is over."""

    code: StatusCode
    reason: str


Event = Opened | HalfClosed | Ended | memoryview  # the last is a message


class _Connection(ABC):
    """What both ends have in common. All of what is received may raise ConnectionBrokenError."""

    def __init__(self, allocate: Allocate, max_message_bytes: int) -> None:
        self._incoming = Incoming(allocate, max_message_bytes)
        self.outgoing = Outgoing()
        self.buffer = self._incoming.buffer
        self.wanted = self._incoming.wanted
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._block: tuple[Frame, bytes] | None = None  # HEADERS whose continuation is to come
        self._stream = 0  # of the present call

    def received(self, num_bytes: int) -> list[Event]:
        """Take in bytes that were written to `buffer()`."""
        events: list[Event] = []
        for item in self._incoming.received(num_bytes):
            if isinstance(item, memoryview):
                events.append(item)
            else:
                self._frame(item, events)
        if self._incoming.num_data_bytes >= CREDIT_BYTES:
            self._credit()
        return events

    def send(self, *pieces: Buffer) -> None:
        """Send a message, in one piece or several, which must not change until it has gone."""
        self.outgoing.message(*pieces)

    def fail(self, reason: str) -> None:
        """Tell the peer that the connection is of no use."""
        self.outgoing.control(frames.go_away(self._stream, ErrorCode.PROTOCOL_ERROR, reason))

    def _greet(self, **more: int) -> None:
        self.outgoing.control(
            frames.settings(
                INITIAL_WINDOW_SIZE=frames.LARGEST_WINDOW_BYTES, MAX_FRAME_SIZE=frames.LARGEST_FRAME_BYTES, **more
            )
        )
        more_bytes = frames.LARGEST_WINDOW_BYTES - frames.FIRST_WINDOW_BYTES
        self.outgoing.control(frames.window_update(0, more_bytes))

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        kind, flags, stream, payload = frame
        if self._block is not None and kind != Kind.CONTINUATION:
            raise ConnectionBrokenError("headers without their continuation")
        try:
            match kind:
                case Kind.DATA:
                    self._peer_closed(events)
                case Kind.HEADERS:
                    self._header_block(frame, _without_padding(payload, flags), events)
                case Kind.CONTINUATION:
                    self._continued(frame, events)
                case Kind.SETTINGS if not flags & frames.ACK:
                    self._set(frames.read_settings(payload))
                    self.outgoing.control(frames.acknowledge(Kind.SETTINGS))
                case Kind.PING if not flags & frames.ACK:
                    self.outgoing.control(frames.acknowledge(Kind.PING, payload))
                case Kind.WINDOW_UPDATE:
                    self.outgoing.window(stream, frames.read_number(payload))
                case Kind.RST_STREAM if stream == self._stream:
                    self._was_reset(frames.read_number(payload), events)
                case Kind.GOAWAY:
                    self._going_away(*frames.read_go_away(payload), events)
                case Kind.PUSH_PROMISE:
                    raise ConnectionBrokenError("a push that nobody wants")
        except (struct.error, hpack.HPACKError, ValueError, IndexError) as error:
            raise ConnectionBrokenError(f"a frame of type {kind} that cannot be read: {error}") from error

    def _set(self, settings: Sequence[tuple[int, int]]) -> None:
        for setting, value in settings:
            match setting:
                case Setting.INITIAL_WINDOW_SIZE:
                    self.outgoing.first_window(value)
                case Setting.MAX_FRAME_SIZE:
                    self.outgoing.frame_size(value)
                case Setting.HEADER_TABLE_SIZE:
                    self._encoder.header_table_size = min(value, 4096)

    def _header_block(self, frame: Frame, fragment: bytes, events: list[Event]) -> None:
        if not frame.flags & frames.END_HEADERS:
            self._block = (frame, fragment)
            return
        headers = {str(name): str(value) for name, value in self._decoder.decode(fragment)}
        self._headers(frame.stream, headers, events)
        if frame.flags & frames.END_STREAM and frame.stream == self._stream:
            self._peer_closed(events)

    def _continued(self, frame: Frame, events: list[Event]) -> None:
        if self._block is None:
            raise ConnectionBrokenError("a continuation of nothing")
        (first, fragment), self._block = self._block, None
        whole = fragment + frame.payload
        if len(whole) > frames.FIRST_WINDOW_BYTES:
            raise ConnectionBrokenError("headers that do not end")
        self._header_block(first._replace(flags=first.flags | frame.flags & frames.END_HEADERS), whole, events)

    def _header_frame(self, headers: Sequence[Header], flags: int = 0) -> bytes:
        block = self._encoder.encode(headers)
        return frames.header(len(block), Kind.HEADERS, flags | frames.END_HEADERS, self._stream) + block

    def _credit(self) -> None:
        """Fill the peer's windows up again."""
        num_bytes, self._incoming.num_data_bytes = self._incoming.num_data_bytes, 0
        for stream in {0, self._stream} if num_bytes else ():
            self.outgoing.control(frames.window_update(stream, num_bytes))

    def _over(self) -> None:
        self._stream = self._incoming.stream = 0
        self._credit()  # the next call's window is whole, but the connection's is not

    @abstractmethod
    def _headers(self, stream: int, headers: dict[str, str], events: list[Event]) -> None: ...

    @abstractmethod
    def _peer_closed(self, events: list[Event]) -> None: ...

    def _was_reset(self, code: int, events: list[Event]) -> None:
        self._over()
        cancelled = code in (ErrorCode.NO_ERROR, ErrorCode.CANCEL)
        events.append(
            Ended(StatusCode.CANCELLED if cancelled else StatusCode.UNAVAILABLE, f"the call was reset with code {code}")
        )

    @abstractmethod
    def _going_away(self, last_stream: int, code: int, events: list[Event]) -> None: ...


class ClientCall(_Connection):
    """The only call on a client's connection."""

    def __init__(self, authority: str, path: str, allocate: Allocate, max_message_bytes: int) -> None:
        super().__init__(allocate, max_message_bytes)
        self.outgoing.control(frames.PREFACE)
        self._greet(ENABLE_PUSH=0)
        self._stream = self._incoming.stream = 1
        self.outgoing.begin(self._stream)
        request = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
        self.outgoing.control(self._header_frame([*request, ("te", "trailers"), _CONTENT]))

    def finish(self) -> None:
        """Send nothing more after what was sent."""
        self.outgoing.end(frames.header(0, Kind.DATA, frames.END_STREAM, self._stream))

    def _headers(self, stream: int, headers: dict[str, str], events: list[Event]) -> None:
        if stream != self._stream:
            return
        if headers.get(":status", "200") != "200":
            self._over()
            events.append(Ended(StatusCode.UNAVAILABLE, f"the answer has the HTTP status {headers[':status']}"))
        elif "grpc-status" in headers:
            self._over()
            code = _CODES.get(int(headers["grpc-status"]), StatusCode.UNKNOWN)
            events.append(Ended(code, unquote(headers.get("grpc-message", ""))))

    def _peer_closed(self, events: list[Event]) -> None:
        if self._stream:
            self._over()
            events.append(Ended(StatusCode.UNKNOWN, "the call ended without a status"))

    def _going_away(self, last_stream: int, code: int, events: list[Event]) -> None:
        if self._stream and (last_stream < self._stream or code != ErrorCode.NO_ERROR):
            self._over()
            events.append(Ended(StatusCode.UNAVAILABLE, f"the server goes away with code {code}"))


class ServerCall(_Connection):
    """A server's end of a connection, on which a client begins one call after another."""

    def __init__(self, allocate: Allocate, max_message_bytes: int) -> None:
        super().__init__(allocate, max_message_bytes)
        self._greet(MAX_CONCURRENT_STREAMS=1)
        self._last_stream = 0
        self._half_closed = self._has_answered = False
        self._preface = frames.PREFACE

    def received(self, num_bytes: int) -> list[Event]:
        """Take in bytes that were written to `buffer()`."""
        if not self._preface:
            return super().received(num_bytes)
        return self._greeted(num_bytes)

    def end(self, code: StatusCode, reason: str = "") -> None:
        """End the call after what was sent."""
        if self._stream:
            status = [("grpc-status", str(code.value[0])), ("grpc-message", quote(reason))]
            first = [] if self._has_answered else [(":status", "200"), _CONTENT]
            last = self._header_frame([*first, *status], frames.END_STREAM)
            if not self._half_closed:
                last += frames.reset(self._stream, ErrorCode.NO_ERROR)
            self.outgoing.end(last)
            self._over()

    def send(self, *pieces: Buffer) -> None:
        """Send a message, in one piece or several, which must not change until it has gone."""
        if not self._has_answered:
            self._has_answered = True
            self.outgoing.control(self._header_frame([(":status", "200"), _CONTENT]))
        self.outgoing.message(*pieces)

    def _greeted(self, num_bytes: int) -> list[Event]:
        """Compare the first bytes with what an HTTP/2 client begins with."""
        buffer = self.buffer()
        have = min(num_bytes, len(self._preface))
        if buffer[:have] != self._preface[:have]:
            raise ConnectionBrokenError("this is no HTTP/2 without TLS, which gRPC is")
        self._preface = self._preface[have:]
        rest = num_bytes - have
        buffer[:rest] = bytes(buffer[have:num_bytes])
        return super().received(rest) if rest else []

    def _headers(self, stream: int, headers: dict[str, str], events: list[Event]) -> None:
        if stream == self._stream:
            return  # trailers of a request, which gRPC does not have
        if stream <= self._last_stream or stream % 2 == 0:
            raise ConnectionBrokenError(f"stream {stream} cannot begin after {self._last_stream}")
        self._last_stream = stream
        if self._stream:
            self.outgoing.control(frames.reset(stream, ErrorCode.REFUSED_STREAM))
            return
        self._stream = self._incoming.stream = stream
        self._half_closed = self._has_answered = False
        self.outgoing.begin(stream)
        events.append(Opened(headers.get(":path", "")))

    def _peer_closed(self, events: list[Event]) -> None:
        self._half_closed = True
        events.append(HalfClosed())

    def _going_away(self, last_stream: int, code: int, events: list[Event]) -> None:
        """Go on: a client that goes away waits for the end of its call."""


def _without_padding(payload: bytes, flags: int) -> bytes:
    """Return the header block of a HEADERS frame."""
    begin = (1 if flags & frames.PADDED else 0) + (5 if flags & frames.PRIORITY else 0)
    end = len(payload) - (payload[0] if flags & frames.PADDED else 0)
    return payload[begin:end]
