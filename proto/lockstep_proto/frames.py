"""The frames of HTTP/2 (RFC 9113, sections 4 and 6), as far as a gRPC call needs them."""

import enum
import struct
from functools import lru_cache

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # a client's first bytes
HEADER_BYTES = 9
MESSAGE_HEADER_BYTES = 5  # of gRPC, before each message: whether it is compressed, and its length
LARGEST_FRAME_BYTES = (1 << 24) - 1
LARGEST_WINDOW_BYTES = (1 << 31) - 1
FIRST_FRAME_BYTES = 16_384  # what everybody takes before the settings have come
FIRST_WINDOW_BYTES = 65_535

_HEADER = struct.Struct(">HBBBI")  # length in 2 + 1 bytes, type, flags, stream
_MESSAGE_HEADER = struct.Struct(">BI")
_BOTH_HEADERS = struct.Struct(">HBBBIBI")
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")
_GOAWAY = struct.Struct(">II")


class Kind(enum.IntEnum):
    """The types of frames. Others are passed over, as the RFC asks."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20


class Setting(enum.IntEnum):
    """The settings that matter here."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    REFUSED_STREAM = 7
    CANCEL = 8


def header(length: int, kind: Kind, flags: int, stream: int) -> bytes:
    """Return the header of a frame with a payload of `length` bytes."""
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)


def read_header(buffer: "memoryview | bytes", offset: int) -> tuple[int, int, int, int]:
    """Return length, type, flags and stream."""
    high, low, kind, flags, stream = _HEADER.unpack_from(buffer, offset)
    return high << 8 | low, kind, flags, stream & 0x7FFFFFFF


def message_header(length: int) -> bytes:
    """Return what comes before a message of gRPC; none is compressed."""
    return _MESSAGE_HEADER.pack(0, length)


@lru_cache(maxsize=1024)  # the messages of a job have few lengths
def headers_of_message(length: int, stream: int) -> bytes:
    """Return what comes before a message that has a frame to itself."""
    size = MESSAGE_HEADER_BYTES + length
    return _BOTH_HEADERS.pack(size >> 8, size & 0xFF, Kind.DATA, 0, stream, 0, length)


def read_headers_of_message(buffer: "memoryview | bytes", offset: int) -> tuple[int, int, int, int, int, int]:
    """Return length, type, flags and stream of a frame, and what `read_message_header` would of its payload."""
    high, low, kind, flags, stream, compressed, length = _BOTH_HEADERS.unpack_from(buffer, offset)
    return high << 8 | low, kind, flags, stream & 0x7FFFFFFF, compressed, length


def read_message_header(buffer: "bytes | bytearray") -> tuple[int, int]:
    """Return whether the message is compressed, and its length."""
    compressed, length = _MESSAGE_HEADER.unpack_from(buffer)
    return compressed, length


def settings(**values: int) -> bytes:
    """Return a SETTINGS frame; the settings are given by their names."""
    payload = b"".join(_SETTING.pack(Setting[name], value) for name, value in values.items())
    return header(len(payload), Kind.SETTINGS, 0, 0) + payload


def read_settings(payload: "memoryview | bytes") -> list[tuple[int, int]]:
    """Return (setting, value) in order. Raises struct.error."""
    return list(_SETTING.iter_unpack(payload))


def acknowledge(kind: Kind, payload: "memoryview | bytes" = b"") -> bytes:
    """Return the answer to a SETTINGS or PING frame."""
    return header(len(payload), kind, ACK, 0) + payload


def window_update(stream: int, num_bytes: int) -> bytes:
    """Return a WINDOW_UPDATE frame: the peer may send so many bytes more."""
    return header(4, Kind.WINDOW_UPDATE, 0, stream) + _NUMBER.pack(num_bytes)


def reset(stream: int, code: ErrorCode) -> bytes:
    """Return an RST_STREAM frame."""
    return header(4, Kind.RST_STREAM, 0, stream) + _NUMBER.pack(code)


def go_away(last_stream: int, code: ErrorCode, reason: str) -> bytes:
    """Return a GOAWAY frame."""
    payload = _GOAWAY.pack(last_stream, code) + reason.encode()
    return header(len(payload), Kind.GOAWAY, 0, 0) + payload


def read_number(payload: "memoryview | bytes") -> int:
    """Return what a WINDOW_UPDATE or RST_STREAM frame says, without its highest bit. Raises struct.error."""
    (number,) = _NUMBER.unpack_from(payload)
    return int(number) & 0x7FFFFFFF


def read_go_away(payload: "memoryview | bytes") -> tuple[int, int]:
    """Return the last stream that was taken in, and the error code. Raises struct.error."""
    last, code = _GOAWAY.unpack_from(payload)
    return last & 0x7FFFFFFF, code
