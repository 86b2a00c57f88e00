import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from lockstep_proto import codec
from lockstep_proto.codec import NodeChunk, ParameterChunk, Sums
from lockstep_proto.v1 import training_pb2
from tests.messages import parameter_message

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
REAL = st.floats(allow_nan=False)
NODE_CHUNKS = st.builds(
    NodeChunk, U32, U64, st.tuples(U32, U32), U32, st.builds(Sums, REAL, REAL, REAL), REAL, st.binary(max_size=300)
)
PARAMETER_CHUNKS = st.builds(ParameterChunk, U32, U64, U32, st.binary(max_size=300), st.none())


def generated_node(chunk):
    return training_pb2.NodeChunk(
        attempt=chunk.attempt, step=chunk.step, lo=chunk.node[0], hi=chunk.node[1], index=chunk.chunk_index,
        sums=chunk.sums, compute_s=chunk.compute_s, data=bytes(chunk.data),
    )  # fmt: skip


def plain(chunk):
    return chunk._replace(data=bytes(chunk.data))


@given(NODE_CHUNKS)
def test_the_generated_class_reads_what_the_codec_writes(chunk):
    parsed = training_pb2.WorkerMessage.FromString(codec.encode_node_chunk(chunk)).chunk
    parsed.ClearField("padding")
    assert parsed == generated_node(chunk)


@given(NODE_CHUNKS)
def test_the_codec_reads_what_it_writes_and_what_the_generated_class_writes(chunk):
    assert plain(codec.decode_worker_message(codec.encode_node_chunk(chunk))) == chunk
    other = training_pb2.WorkerMessage(chunk=generated_node(chunk)).SerializeToString()
    assert plain(codec.decode_worker_message(other)) == chunk


@given(PARAMETER_CHUNKS)
def test_parameter_chunks_go_both_ways(chunk):
    written = parameter_message(chunk)
    parsed = training_pb2.ServerMessage.FromString(written).chunk
    parsed.ClearField("padding")
    generated = training_pb2.ParameterChunk(
        attempt=chunk.attempt, version=chunk.version, index=chunk.chunk_index, data=chunk.data
    )
    assert parsed == generated
    assert plain(codec.decode_server_message(written)) == chunk
    other = training_pb2.ServerMessage(chunk=generated).SerializeToString()
    assert plain(codec.decode_server_message(other)) == chunk


@given(st.builds(ParameterChunk, U32, U64, U32, st.just(b""), st.builds(codec.Reference, U64, U32)))
def test_the_places_of_parameter_chunks_go_both_ways(chunk):
    written = codec.encode_placed_chunk(chunk._replace(place=None), chunk.place)
    generated = training_pb2.ParameterChunk(
        attempt=chunk.attempt,
        version=chunk.version,
        index=chunk.chunk_index,
        place=training_pb2.Reference(offset=chunk.place.offset, num_bytes=chunk.place.num_bytes),
    )
    assert training_pb2.ServerMessage.FromString(written).chunk == generated
    assert plain(codec.decode_server_message(written)) == chunk
    other = training_pb2.ServerMessage(chunk=generated).SerializeToString()
    assert plain(codec.decode_server_message(other)) == chunk


@given(PARAMETER_CHUNKS)
def test_a_parameter_chunk_is_as_long_as_it_says(chunk):
    assert codec.message_bytes(chunk) == len(parameter_message(chunk))


@given(NODE_CHUNKS, st.integers(16, 500), st.binary(max_size=20))
def test_unknown_fields_and_another_order_are_read(chunk, number, unknown):
    tag = number << 3 | 2
    extra = bytes([tag & 0x7F | 0x80, tag >> 7]) + bytes([len(unknown)]) + unknown
    inner = generated_node(chunk)
    first, rest = training_pb2.NodeChunk(data=inner.data), inner
    rest.ClearField("data")
    body = extra + first.SerializeToString() + rest.SerializeToString()
    message = b"\x0a" + _varint(len(body)) + body
    assert plain(codec.decode_worker_message(message)) == chunk


def _varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_data_start_at_a_multiple_of_16_bytes_and_are_not_copied():
    message = codec.encode_node_chunk(NodeChunk(1, 2, (0, 1), 0, Sums(1, 2, 3), 0.0, np.arange(4.0).data))
    assert codec.NODE_HEADER_BYTES % 16 == codec.PARAMETERS_HEADER_BYTES % 16 == 0
    values = np.frombuffer(codec.decode_worker_message(message).data)
    np.testing.assert_array_equal(values, np.arange(4.0))
    assert np.shares_memory(values, np.frombuffer(message, np.uint8))
    assert values.ctypes.data % 16 == 0


def test_other_messages_pass_through_as_the_generated_class():
    hello = training_pb2.WorkerMessage(hello=training_pb2.WorkerHello(job_id="j"))
    assert codec.decode_worker_message(hello.SerializeToString()) == hello
    work = training_pb2.ServerMessage(work=training_pb2.Work(version=3))
    assert codec.decode_server_message(work.SerializeToString()) == work


@given(offset=st.integers(0, 2**64 - 1), num_bytes=st.integers(0, 2**32 - 1))
def test_a_reference_is_protobuf_and_any_encoding_of_it_is_read(offset, num_bytes):
    reference = codec.Reference(offset, num_bytes)
    message = codec.encode_reference(reference)
    plain = training_pb2.Reference(offset=offset, num_bytes=num_bytes)
    assert training_pb2.WorkerMessage.FromString(message).reference == plain
    assert codec.read_reference(message) == reference
    assert codec.read_reference(training_pb2.WorkerMessage(reference=plain).SerializeToString()) == reference


def test_other_messages_are_no_references():
    heartbeat = training_pb2.WorkerMessage(heartbeat=training_pb2.Heartbeat()).SerializeToString()
    assert codec.read_reference(heartbeat) is None
    assert codec.read_reference(b"") is None


@given(NODE_CHUNKS, st.data())
def test_a_cut_message_is_never_taken_for_a_whole_one(chunk, data):
    message = codec.encode_node_chunk(chunk)
    cut = message[: data.draw(st.integers(1, len(message) - 1))]
    with pytest.raises(DecodeError):
        codec.decode_worker_message(cut)


def test_a_chunk_without_its_sums_is_refused():
    message = training_pb2.WorkerMessage(chunk=training_pb2.NodeChunk(attempt=1, sums=[1.0])).SerializeToString()
    with pytest.raises(DecodeError, match="3 sums, got 1"):
        codec.decode_worker_message(message)
