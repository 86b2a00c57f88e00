"""A call from either end, without sockets; and against another implementation of gRPC, with them."""

import queue
import random
import socket
import threading
from concurrent import futures

import grpc
import pytest
from grpc import StatusCode

from lockstep_proto import frames
from lockstep_proto.calls import ClientCall, Ended, HalfClosed, Opened, ServerCall
from lockstep_proto.frames import Kind
from lockstep_proto.incoming import BUFFER_BYTES, ConnectionBrokenError
from lockstep_proto.outgoing import Outgoing

PATH = "/some.Service/Method"
MAX_BYTES = 1 << 22
SIZES = [0, 1, 5, 100, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 300_000]


def room(num_bytes):
    return memoryview(bytearray(num_bytes))


def client():
    return ClientCall("host:1", PATH, room, MAX_BYTES)


def server():
    return ServerCall(room, MAX_BYTES)


def written(end):
    """What an end writes to its socket."""
    data = b"".join(bytes(buffer) for buffer in end.outgoing.buffers)
    assert len(data) == end.outgoing.num_bytes
    end.outgoing.sent(len(data))
    assert not end.outgoing.buffers
    return data


def read(end, data, piece=lambda: 1 << 30):
    """Give an end bytes, in pieces. Return what happens, messages as bytes."""
    events = []
    while data:
        buffer = end.buffer()
        assert 1 <= end.wanted() <= min(len(buffer), len(data)), "who waits for so many bytes gets them"
        size = min(len(buffer), len(data), piece())
        buffer[:size] = data[:size]
        data = data[size:]
        events += [bytes(e) if isinstance(e, memoryview) else e for e in end.received(size)]
    return events


def exchange(one, other, piece=lambda: 1 << 30):
    """Carry bytes both ways until nothing more is written. Return what happens at each end."""
    at_one, at_other = [], []
    while one.outgoing.buffers or other.outgoing.buffers:
        at_other += read(other, written(one), piece)
        at_one += read(one, written(other), piece)
    return at_one, at_other


def pieces(seed, most):
    rng = random.Random(seed)
    return lambda: rng.randint(1, most)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [1, 9, 70_000, 1 << 30])
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(seed, most):
    rng = random.Random(seed)
    messages = [rng.randbytes(rng.choice(SIZES) if most > 9 else rng.choice(SIZES[:4])) for _ in range(10)]
    near, far, piece = client(), server(), pieces(seed, most)
    for message in messages:
        near.send(message)
    near.finish()
    assert exchange(near, far, piece)[1] == [Opened(PATH), *messages, HalfClosed()]
    for message in messages:
        far.send(message)
    far.end(StatusCode.UNAVAILABLE, "100 % dürr")
    assert exchange(near, far, piece)[0] == [*messages, Ended(StatusCode.UNAVAILABLE, "100 % dürr")]


@pytest.mark.parametrize("most", [9, 70_000, 1 << 30])
@pytest.mark.parametrize("size", [3, 50_000, 400_000])
def test_a_message_may_be_sent_in_pieces(size, most):
    rng = random.Random(size)
    head, values = rng.randbytes(48), rng.randbytes(size)
    near, far = client(), server()
    exchange(near, far)
    for _ in range(3):
        far.send(head, memoryview(values))
        far.send(b"work")
    assert exchange(near, far, pieces(1, most))[0] == [head + values, b"work"] * 3


def test_the_pieces_of_a_message_go_out_as_they_are():
    near, far = client(), server()
    exchange(near, far)
    values = bytes(400_000)
    far.send(b"head", values)
    assert any(buffer is values for buffer in far.outgoing.buffers)


def test_the_rest_of_a_message_is_worth_waiting_for():
    near, far = client(), server()
    exchange(near, far)
    near.send(bytes(200_000))
    data = written(near)
    assert far.wanted() == 1
    buffer = far.buffer()
    buffer[:1000] = data[:1000]
    assert far.received(1000) == []
    assert far.wanted() == len(data) - 1000
    assert read(far, data[1000:]) == [bytes(200_000)]
    assert far.wanted() == 1


def test_a_call_that_is_refused_has_no_messages_and_another_may_follow():
    near, far = client(), server()
    assert exchange(near, far)[1] == [Opened(PATH)]
    far.end(StatusCode.UNIMPLEMENTED, "no")
    assert exchange(near, far)[0] == [Ended(StatusCode.UNIMPLEMENTED, "no")]
    near._stream = 3
    far_events = read(far, near._header_frame([(":method", "POST"), (":path", "/other")]))
    assert far_events == [Opened("/other")]


def test_a_message_waits_for_the_window_and_goes_on_with_it():
    near, far = client(), server()
    first = written(far)
    near.send(bytes(100_000))  # the settings of the peer have not come
    sent = written(near)
    assert len(sent) < frames.FIRST_WINDOW_BYTES + 500
    assert near.outgoing.waits
    read(near, first)
    assert not near.outgoing.waits
    assert read(far, sent + written(near)) == [Opened(PATH), bytes(100_000)]


def test_a_window_that_the_peer_makes_smaller_may_be_below_zero():
    near = client()
    written(near)
    near.send(bytes(60_000))
    written(near)
    read(near, frames.settings(INITIAL_WINDOW_SIZE=1000))
    near.send(b"more")
    assert near.outgoing.waits
    read(near, frames.window_update(1, 60_000 + 1000))
    assert not near.outgoing.waits


def test_the_peers_window_is_filled_up_again(monkeypatch):
    monkeypatch.setattr("lockstep_proto.calls.CREDIT_BYTES", 1000)
    near, far = client(), server()
    exchange(near, far)
    near.send(bytes(2000))
    read(far, written(near))
    data_bytes = 2000 + frames.MESSAGE_HEADER_BYTES
    assert written(far) == frames.window_update(0, data_bytes) + frames.window_update(1, data_bytes)


def test_the_connections_window_is_filled_up_at_the_end_of_a_call_and_the_next_one_has_its_own():
    near, far = client(), server()
    exchange(near, far)
    near.send(bytes(2000))
    read(far, written(near))
    far.end(StatusCode.OK)
    assert frames.window_update(0, 2000 + frames.MESSAGE_HEADER_BYTES) in written(far)
    assert far._incoming.num_data_bytes == 0


def test_pings_and_settings_are_answered_and_what_is_unknown_is_passed_over():
    near, far = client(), server()
    exchange(near, far)
    ping = frames.header(8, Kind.PING, 0, 0) + b"12345678"
    unknown = frames.header(3, 0x55, 0, 0) + b"abc"
    assert read(far, unknown + ping) == []
    assert written(far) == frames.acknowledge(Kind.PING, b"12345678")


def test_a_reset_ends_the_call():
    near, far = client(), server()
    exchange(near, far)
    assert read(far, frames.reset(1, frames.ErrorCode.CANCEL))[0].code is StatusCode.CANCELLED
    assert read(near, frames.reset(1, frames.ErrorCode.REFUSED_STREAM))[0].code is StatusCode.UNAVAILABLE


def test_headers_may_come_in_parts_and_with_padding():
    near, far = client(), server()
    read(far, frames.PREFACE)
    block = near._encoder.encode([(":path", "/parts")])
    first = b"\x02" + bytes(5) + block[:4] + b"\0\0"
    flags = frames.PADDED | frames.PRIORITY
    parts = frames.header(len(first), Kind.HEADERS, flags, 1) + first
    parts += frames.header(len(block) - 4, Kind.CONTINUATION, frames.END_HEADERS, 1) + block[4:]
    assert read(far, parts) == [Opened("/parts")]


DATA = frames.header(5, Kind.DATA, 0, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no HTTP/2"),
        (b"\x16\x03\x01\x02\x00\x01", "no HTTP/2"),
        (frames.PREFACE + frames.header(1 << 20, Kind.HEADERS, 0, 1), "too large"),
        (frames.PREFACE + frames.header(3, Kind.SETTINGS, 0, 0) + b"abc", "cannot be read"),
        (frames.PREFACE + frames.header(3, Kind.HEADERS, frames.END_HEADERS, 1) + b"\xff\xff\xff", "cannot be read"),
        (frames.PREFACE + frames.header(0, Kind.CONTINUATION, 0, 1), "a continuation of nothing"),
        (frames.PREFACE + frames.header(0, Kind.PUSH_PROMISE, 0, 1), "a push that nobody wants"),
        (frames.PREFACE + frames.header(0, Kind.HEADERS, frames.END_HEADERS, 2), "stream 2 cannot begin"),
        (frames.PREFACE + frames.header(5, Kind.DATA, frames.PADDED, 1) + bytes(5), "padded data"),
    ],
)
def test_who_does_not_speak_http2_is_told_why(data, reason):
    with pytest.raises(ConnectionBrokenError, match=reason):
        read(server(), data)


@pytest.mark.parametrize(
    ("header", "reason"), [(b"\x01\0\0\0\x05", "compressed"), (b"\0\x7f\0\0\0", "a message of 2130706432 bytes")]
)
def test_messages_that_cannot_be_taken_break_the_connection(header, reason):
    near, far = client(), server()
    exchange(near, far)
    with pytest.raises(ConnectionBrokenError, match=reason):
        read(far, DATA + header)


# Against grpcio.


class Answering(threading.Thread):
    """Our end of a server: answers every message with itself, and the last one with a status."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        connected, _ = self.listener.accept()
        with connected, self.listener:
            call = server()
            while True:
                connected.sendall(written(call))
                num_bytes = connected.recv_into(call.buffer())
                if not num_bytes:
                    return
                for event in call.received(num_bytes):
                    if isinstance(event, memoryview):
                        call.send(event)
                    elif isinstance(event, HalfClosed):
                        call.end(StatusCode.ABORTED, "that is äll")


LARGE = [random.Random(7).randbytes(size) for size in (10, 3_000_000, 0, 70_000, 1_000_000)]


def test_grpcio_as_the_client_gets_its_messages_back():
    with grpc.insecure_channel(f"127.0.0.1:{Answering().port}") as channel:
        answers = channel.stream_stream(PATH)(iter(LARGE))
        assert [next(answers) for _ in LARGE] == LARGE
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
    assert caught.value.code() is StatusCode.ABORTED
    assert caught.value.details() == "that is äll"


def test_grpcio_as_the_server_gives_them_back():
    def answer(messages, context):
        yield from messages
        context.abort(StatusCode.ABORTED, "that is äll")

    served = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.stream_stream_rpc_method_handler(answer)
    served.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("some.Service", {"Method": handler}),))
    port = served.add_insecure_port("127.0.0.1:0")
    served.start()
    events = queue.SimpleQueue()
    with socket.create_connection(("127.0.0.1", port)) as connected:
        call = client()
        for message in LARGE:
            call.send(message)
        call.finish()
        ended = False
        while not ended:
            connected.sendall(written(call))
            for event in call.received(connected.recv_into(call.buffer())):
                events.put(bytes(event) if isinstance(event, memoryview) else event)
                ended = isinstance(event, Ended)
    served.stop(None).wait()
    assert [events.get() for _ in LARGE] == LARGE
    assert events.get() == Ended(StatusCode.ABORTED, "that is äll")


def test_a_message_that_just_fits_the_window_waits_for_nothing():
    outgoing = Outgoing()
    outgoing.begin(1)
    outgoing.message(bytes(frames.FIRST_WINDOW_BYTES - frames.MESSAGE_HEADER_BYTES), b"")
    assert not outgoing.waits
