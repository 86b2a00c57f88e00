"""The encoding of chunk messages: valid protobuf whose data is copied once, or not at all.

A NodeChunk in its WorkerMessage, and a ParameterChunk in its ServerMessage, are written with all fields in the order
of their numbers, lengths as varints of five bytes, and padding that makes the header as long as its struct, so that
the data starts at a multiple of 16 bytes of the message. Every protobuf parser reads that. In the other direction
the fast path recognises exactly this header; any other valid encoding goes through the generated class. The header of a
ParameterChunk is made apart from its data, which go out from where they lie; where the worker has the same memory, only
the place goes out.
"""

import struct
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from lockstep_proto.tree import Node
from lockstep_proto.v1 import training_pb2

Data = bytes | memoryview


class Sums(NamedTuple):
    """What a node sums up over its rows, in float64."""

    weight: float
    loss: float
    metric: float

    def plus(self, other: "Sums") -> "Sums":
        """Return the sums of the parent, self being its left child."""
        return Sums(self.weight + other.weight, self.loss + other.loss, self.metric + other.metric)


class NodeChunk(NamedTuple):
    """One chunk of a node's value. `data` holds little-endian values and is empty in an evaluation."""

    attempt: int
    step: int
    node: Node
    chunk_index: int
    sums: Sums
    compute_s: float
    data: Data


class Reference(NamedTuple):
    """Where something lies that does not go through the stream: its place in shared memory, and its length."""

    offset: int
    num_bytes: int


class ParameterChunk(NamedTuple):
    """One chunk of the parameters of one version. `data` holds little-endian values.

    Where `place` is set, they lie there, in shared memory.
    """

    attempt: int
    version: int
    chunk_index: int
    data: Data
    place: Reference | None = None


@lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    """Encode a length in five bytes, whatever its size."""
    return bytes([(value >> shift) & 0x7F | 0x80 for shift in (0, 7, 14, 21)] + [value >> 28])


_ENVELOPE_BYTES = 6  # tag and length of the chunk in its stream message; its own length counts what follows them

# tag, length | attempt | step | lo | hi | index | sums | compute_s | padding | data: tag, length
_NODE = struct.Struct("<B5s BI BQ BI BI BI H3d Bd I B5s".replace(" ", ""))
_NODE_TAGS = (0x0A, 0x0D, 0x11, 0x1D, 0x25, 0x2D, 0x1832, 0x39, 0x0272, 0x7A)
# tag, length | attempt | version | index | padding | data: tag, length
_PARAMETERS = struct.Struct("<B5s BI BQ BI 17s B5s".replace(" ", ""))
_PARAMETERS_PADDING = b"\x72\x0f" + bytes(15)
_PARAMETERS_TAGS = (0x0A, 0x0D, 0x11, 0x1D, _PARAMETERS_PADDING, 0x7A)
# tag, length | attempt | version | index | place: tag, length | offset | num_bytes
_PLACED = struct.Struct("<BB BI BQ BI BB BQ BI".replace(" ", ""))
_PLACED_TAGS = (0x0A, _PLACED.size - 2, 0x0D, 0x11, 0x1D, 0x22, 14, 0x09, 0x15)

# tag, length | offset | num_bytes
_REFERENCE = struct.Struct("<BB BQ BI".replace(" ", ""))
_REFERENCE_TAGS = (0x42, _REFERENCE.size - 2, 0x09, 0x15)

NODE_HEADER_BYTES = _NODE.size
PARAMETERS_HEADER_BYTES = _PARAMETERS.size


def encode_node_chunk(chunk: NodeChunk) -> bytes:
    """Return the WorkerMessage that holds `chunk`."""
    header = _node_header(chunk)
    return b"".join((header, chunk.data)) if len(chunk.data) else header


def write_node_chunk(message: memoryview, chunk: NodeChunk) -> None:
    """Make `message`, which has as many bytes as it takes, the WorkerMessage that holds `chunk`."""
    message[: _NODE.size] = _node_header(chunk)
    message[_NODE.size :] = memoryview(chunk.data).cast("B")


def _node_header(chunk: NodeChunk) -> bytes:
    size = memoryview(chunk.data).nbytes
    outer = _varint(_NODE.size - _ENVELOPE_BYTES + size)
    t0, t1, t2, t3, t4, t5, t6, t7, pad, t15 = _NODE_TAGS
    return _NODE.pack(
        t0, outer, t1, chunk.attempt, t2, chunk.step, t3, chunk.node[0], t4, chunk.node[1], t5, chunk.chunk_index,
        t6, *chunk.sums, t7, chunk.compute_s, pad, t15, _varint(size),
    )  # fmt: skip


def encode_parameter_chunk(chunk: ParameterChunk) -> tuple[bytes, Data]:
    """Return the ServerMessage that holds `chunk`, in two pieces: the second one is its data."""
    return _parameter_header(chunk.attempt, chunk.version, chunk.chunk_index, len(chunk.data)), chunk.data


def message_bytes(chunk: ParameterChunk) -> int:
    """Return how long the ServerMessage that holds `chunk` is."""
    return _PARAMETERS.size + len(chunk.data)


@lru_cache(maxsize=64)  # the same for all workers
def _parameter_header(attempt: int, version: int, chunk_index: int, num_bytes: int) -> bytes:
    outer = _varint(_PARAMETERS.size - _ENVELOPE_BYTES + num_bytes)
    t0, t1, t2, t3, pad, t15 = _PARAMETERS_TAGS
    return _PARAMETERS.pack(t0, outer, t1, attempt, t2, version, t3, chunk_index, pad, t15, _varint(num_bytes))


def encode_placed_chunk(chunk: ParameterChunk, place: Reference) -> bytes:
    """Return the ServerMessage that says at which place the values of `chunk` lie."""
    t0, outer, t1, t2, t3, t4, inner, t5, t6 = _PLACED_TAGS
    return _PLACED.pack(
        t0, outer, t1, chunk.attempt, t2, chunk.version, t3, chunk.chunk_index,
        t4, inner, t5, place.offset, t6, place.num_bytes,
    )  # fmt: skip


def encode_reference(reference: Reference) -> bytes:
    """Return the WorkerMessage that says where a message lies."""
    t8, length, t1, t2 = _REFERENCE_TAGS
    return _REFERENCE.pack(t8, length, t1, reference.offset, t2, reference.num_bytes)


def read_reference(message: Data) -> Reference | None:
    """Return what such a message says; None for any other. Raises DecodeError for what is not protobuf."""
    if not message or message[0] != _REFERENCE_TAGS[0]:
        return None
    if len(message) == _REFERENCE.size:
        t8, length, t1, offset, t2, num_bytes = _REFERENCE.unpack(message)
        if (t8, length, t1, t2) == _REFERENCE_TAGS:
            return Reference(offset, num_bytes)
    parsed = training_pb2.WorkerMessage.FromString(bytes(message))
    if parsed.WhichOneof("kind") != "reference":
        return None
    return Reference(parsed.reference.offset, parsed.reference.num_bytes)


def decode_worker_message(message: Data) -> NodeChunk | training_pb2.WorkerMessage:
    """Read what a worker sent. Raises DecodeError for what is not protobuf."""
    if len(message) >= _NODE.size and message[0] == _NODE_TAGS[0]:
        (
            t0, outer, t1, attempt, t2, step, t3, lo, t4, hi, t5, index, t6, weight, loss, metric,
            t7, compute_s, pad, t15, inner,
        ) = _NODE.unpack_from(message)  # fmt: skip
        tags = (t0, t1, t2, t3, t4, t5, t6, t7, pad, t15)
        if tags == _NODE_TAGS and (outer, inner) == _lengths(len(message), _NODE.size):
            sums = Sums(weight, loss, metric)
            return NodeChunk(attempt, step, (lo, hi), index, sums, compute_s, memoryview(message)[_NODE.size :])
    parsed = training_pb2.WorkerMessage.FromString(bytes(message))
    if parsed.WhichOneof("kind") != "chunk":
        return parsed
    c = parsed.chunk
    if len(c.sums) != len(Sums._fields):
        raise DecodeError(f"a chunk has {len(Sums._fields)} sums, got {len(c.sums)}")
    return NodeChunk(c.attempt, c.step, (c.lo, c.hi), c.index, Sums(*c.sums), c.compute_s, memoryview(c.data))


def decode_server_message(message: Data) -> ParameterChunk | training_pb2.ServerMessage:
    """Read what the server sent. Raises DecodeError for what is not protobuf."""
    if len(message) >= _PARAMETERS.size and message[0] == _PARAMETERS_TAGS[0]:
        t0, outer, t1, attempt, t2, version, t3, index, pad, t15, inner = _PARAMETERS.unpack_from(message)
        tags = (t0, t1, t2, t3, pad, t15)
        if tags == _PARAMETERS_TAGS and (outer, inner) == _lengths(len(message), _PARAMETERS.size):
            return ParameterChunk(attempt, version, index, memoryview(message)[_PARAMETERS.size :])
    elif len(message) == _PLACED.size and message[0] == _PLACED_TAGS[0]:
        t0, length, t1, attempt, t2, version, t3, index, t4, inner, t5, offset, t6, num_bytes = _PLACED.unpack(message)
        if (t0, length, t1, t2, t3, t4, inner, t5, t6) == _PLACED_TAGS:
            return ParameterChunk(attempt, version, index, b"", Reference(offset, num_bytes))
    parsed = training_pb2.ServerMessage.FromString(bytes(message))
    if parsed.WhichOneof("kind") != "chunk":
        return parsed
    c = parsed.chunk
    place = Reference(c.place.offset, c.place.num_bytes) if c.HasField("place") else None
    return ParameterChunk(c.attempt, c.version, c.index, memoryview(c.data), place)


@lru_cache(maxsize=4096)
def _lengths(size: int, header_bytes: int) -> tuple[bytes, bytes]:
    """Return the two lengths that a chunk message of `size` bytes has in its header."""
    return _varint(size - _ENVELOPE_BYTES), _varint(size - header_bytes)
