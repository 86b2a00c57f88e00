"""The threads and streams around a session, against a server that says what a test wants.

The server is grpcio's: what a worker writes and reads is gRPC.
"""

import math
import queue
import socket
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest

from lockstep_proto import channels, codec, incoming
from lockstep_proto.codec import ParameterChunk
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import training_pb2
from lockstep_worker import computing, exchange, session
from lockstep_worker.errors import WorkerError
from lockstep_worker.exchange import Worker
from lockstep_worker.shard import Shard
from tests.messages import parameter_message

WAIT_S = 30.0
SPEC = read_spec(
    {"network": {"inputs": 1, "layers": [{"units": 1}]}, "loss": "norm", "batch_size": "full", "epochs": 1}
)
SHARD = Shard(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32))


def message(**kind):
    return training_pb2.ServerMessage(**kind).SerializeToString()


def welcome(lease_s=WAIT_S):
    return message(welcome=training_pb2.Welcome(attempt=1, spec=SPEC, chunk_elements=2, lease_s=lease_s))


def version(number):
    return parameter_message(ParameterChunk(1, number, 0, np.zeros(2, np.float32).tobytes()))


def work(number):
    ranges = [training_pb2.ShardRange(lo=0, hi=SPEC.shards)]
    return message(work=training_pb2.Work(attempt=1, version=number, kind=training_pb2.WORK_KIND_STEP, ranges=ranges))


GOODBYE = message(goodbye=training_pb2.Goodbye(reason="that is all"))


class Server:
    """Puts every stream into a queue."""

    def __init__(self):
        self.streams = queue.Queue()
        self.workers = []
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=list(channels.server_options()))
        handler = grpc.stream_stream_rpc_method_handler(self._serve, codec.decode_worker_message, None)
        handlers = grpc.method_handlers_generic_handler("lockstep.v1.TrainingService", {"Exchange": handler})
        self.server.add_generic_rpc_handlers((handlers,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def _serve(self, messages, context):
        stream = Stream(messages, context)
        self.streams.put(stream)
        while (message := stream.outgoing.get()) is not None:
            yield message

    def stream(self):
        return self.streams.get(timeout=WAIT_S)


class Stream:
    """One stream, from the server's end."""

    def __init__(self, messages, context):
        self.outgoing = queue.SimpleQueue()
        self.incoming = queue.Queue()
        self.ended = threading.Event()
        context.add_callback(lambda: (self.ended.set(), self.outgoing.put(None)))
        threading.Thread(target=self._read, args=[messages], daemon=True).start()

    def _read(self, messages):
        try:
            for message in messages:
                self.incoming.put(message)
        except Exception:
            return

    def say(self, *messages):
        for message in messages:
            self.outgoing.put(message)

    def next(self):
        """The next message that is no heartbeat, and its kind; a chunk has none."""
        while True:
            message = self.incoming.get(timeout=WAIT_S)
            kind = None if isinstance(message, codec.NodeChunk) else message.WhichOneof("kind")
            if kind != "heartbeat":
                return message, kind

    def hear(self):
        """The kind of the next message."""
        return self.next()[1]


@pytest.fixture
def server():
    made = Server()
    yield made
    made.server.stop(None).wait()


@pytest.fixture
def pool(server):
    with futures.ThreadPoolExecutor() as made:
        yield made
        for worker in server.workers:
            worker.leave()  # one whose test has failed would dial for ever


@pytest.fixture
def worker(server):
    return worker_of(server)


def worker_of(server, fetch=lambda shard: SHARD):
    made = Worker("w", "job", f"127.0.0.1:{server.port - 1}", num_cpus=1, training=fetch, validation=fetch)
    server.workers.append(made)
    return made


def own_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("worker_")]


def test_a_worker_greets_computes_and_ends_with_all_its_threads(server, worker, pool):
    running = pool.submit(worker.run)
    stream = server.stream()
    stream.say(welcome(), version(0), work(0))
    assert [stream.hear(), stream.hear()] == ["hello", None]
    assert sorted(own_threads()) == ["worker_relieve", "worker_tick", "worker_write"]
    stream.say(GOODBYE, None)
    assert running.result(WAIT_S) == "that is all"
    assert own_threads() == []


def test_a_silent_server_is_left_and_dialled_again(server, worker, pool):
    running = pool.submit(worker.run)
    first = server.stream()
    first.say(welcome(lease_s=0.2))
    second = server.stream()
    assert first.ended.wait(WAIT_S)
    second.say(GOODBYE, None)
    assert running.result(WAIT_S) == "that is all"


def test_a_defect_closes_the_stream_and_the_worker_dials_again(server, worker, pool, monkeypatch, caplog):
    def raise_once(*_):
        monkeypatch.undo()
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(session.Following, "chunk", raise_once)
    running = pool.submit(worker.run)
    first = server.stream()
    first.say(welcome(), version(0), work(0))
    assert first.ended.wait(WAIT_S)
    assert "nobody foresaw this" in caplog.text
    second = server.stream()
    second.say(welcome(), version(0), work(0))
    assert [second.hear(), second.hear()] == ["hello", None]
    second.say(GOODBYE, None)
    assert running.result(WAIT_S) == "that is all"


def test_a_server_that_refers_to_memory_which_is_not_there_is_left_and_dialled_again(server, worker, pool, caplog):
    caplog.set_level("INFO")
    running = pool.submit(worker.run)
    first = server.stream()
    placed = codec.encode_placed_chunk(ParameterChunk(1, 0, 0, b""), codec.Reference(4096, 8))
    first.say(welcome(), placed, work(0))
    second = server.stream()
    assert first.ended.wait(WAIT_S)
    assert "the server refers to memory that is not shared" in caplog.text
    second.say(GOODBYE, None)
    assert running.result(WAIT_S) == "that is all"


def test_what_ends_a_thread_ends_the_worker(server, worker, pool, monkeypatch):
    def fail(*_):
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(session.Session, "tick", fail)
    running = pool.submit(worker.run)
    server.stream().say(welcome(lease_s=0.2))
    with pytest.raises(KeyError, match="nobody foresaw this"):
        running.result(WAIT_S)
    assert own_threads() == []


def test_a_computation_that_fails_is_told_and_ends_the_worker(server, pool):
    def fetch(shard):
        raise MemoryError("no room")

    running = pool.submit(worker_of(server, fetch).run)
    stream = server.stream()
    stream.say(welcome(), version(0), work(0))
    assert [stream.hear(), stream.hear()] == ["hello", "failure"]
    stream.say(None)
    with pytest.raises(WorkerError, match="cannot compute step 0: MemoryError: no room"):
        running.result(WAIT_S)


def test_newer_work_is_seen_by_the_computation_under_way(server, pool):
    fetched, newer = [], threading.Event()

    def fetch(shard):
        fetched.append(shard)
        if shard == 0:
            stream.say(version(1), work(1))
            while made._session._round == computation:  # the reading thread takes it in
                newer.wait(0.001)
        return SHARD

    made = worker_of(server, fetch)
    running = pool.submit(made.run)
    stream = server.stream()
    computation = 1
    stream.say(welcome(), version(0), work(0))
    assert stream.hear() == "hello"
    chunk, _ = stream.next()
    assert chunk.step == 1, "nothing is sent of the step that was left off"
    assert fetched == list(range(SPEC.shards)), "shard 0, then newer work, and with that the others"
    stream.say(GOODBYE, None)
    running.result(WAIT_S)


@pytest.fixture
def readers(monkeypatch):
    """The names of the threads that took messages in, in order."""
    names = []
    received = session.Session.received
    monkeypatch.setattr(
        session.Session, "received", lambda *a: (names.append(threading.current_thread().name), received(*a))[1]
    )
    return names


def run_steps(server, pool, worker, num_steps):
    """Have a worker compute one step after the other and end."""
    running = pool.submit(worker.run)
    stream = server.stream()
    stream.say(welcome())
    assert stream.hear() == "hello"
    for step in range(num_steps):
        stream.say(version(step), work(step))
        assert stream.next()[0].step == step
    stream.say(GOODBYE, None)
    assert running.result(WAIT_S) == "that is all"


def test_the_thread_that_computes_reads_while_it_has_nothing_to_compute(server, worker, pool, readers, monkeypatch):
    monkeypatch.setattr(computing, "LONG_S", math.inf)
    run_steps(server, pool, worker, 20)
    assert len(set(readers)) == 1
    assert "worker_relieve" not in readers


def test_threads_that_take_turns_at_reading_lose_nothing(server, worker, pool, monkeypatch):
    monkeypatch.setattr(computing, "LONG_S", 0.0)
    run_steps(server, pool, worker, 200)


class Held:
    """A worker whose first computation lasts until it may go on, and its stream."""

    def __init__(self, server, pool):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.worker = worker_of(server, self._fetch)
        self.running = pool.submit(self.worker.run)
        self.stream = server.stream()
        self.stream.say(welcome(), version(0), work(0))
        assert self.begun.wait(WAIT_S)

    def _fetch(self, shard):
        self.begun.set()
        assert self.go_on.wait(WAIT_S)
        return SHARD

    def end(self):
        self.stream.say(GOODBYE, None)
        assert self.running.result(WAIT_S) == "that is all"


SELDOM, OFTEN = 0.001, 300  # ticks in a lease


@pytest.mark.parametrize(
    ("long_s", "ticks"),
    [(0.0, SELDOM), (math.inf, OFTEN)],
    ids=["known to be long", "thought short"],
)
def test_under_a_long_computation_another_thread_reads(server, pool, readers, monkeypatch, long_s, ticks):
    monkeypatch.setattr(computing, "LONG_S", long_s)
    monkeypatch.setattr(session, "HEARTBEATS_PER_LEASE", ticks)
    held = Held(server, pool)
    chunk = session.Following.chunk
    monkeypatch.setattr(session.Following, "chunk", lambda *args: (chunk(*args), held.go_on.set())[0])
    held.stream.say(version(1), work(1))
    assert held.go_on.wait(WAIT_S)
    assert readers[-1] == "worker_relieve"
    held.end()


def test_what_has_come_meanwhile_is_read_before_the_next_computation(server, pool, monkeypatch):
    monkeypatch.setattr(computing, "LONG_S", math.inf)
    monkeypatch.setattr(session, "HEARTBEATS_PER_LEASE", SELDOM)
    monkeypatch.setattr(incoming, "BUFFER_BYTES", 512)  # of which there will be many
    held = Held(server, pool)
    newer = [each for step in range(1, 201) for each in (version(step), work(step))]
    held.stream.say(*newer)
    while newer[-1] not in held.worker._stream._socket.recv(1 << 16, socket.MSG_PEEK):
        held.go_on.wait(0.001)
    held.go_on.set()
    assert held.stream.hear() == "hello"
    assert [held.stream.next()[0].step for _ in range(2)] == [0, 200]
    held.end()


@pytest.mark.parametrize("long_s", [0.0, math.inf])
def test_one_who_leaves_does_not_wait_for_long_for_a_server_that_does_not_answer(
    server, worker, pool, monkeypatch, long_s
):
    monkeypatch.setattr(computing, "LONG_S", long_s)
    monkeypatch.setattr(exchange, "GOODBYE_S", 0.05)
    running = pool.submit(worker.run)
    stream = server.stream()
    stream.say(welcome(), version(0), work(0))
    assert [stream.hear(), stream.hear()] == ["hello", None]
    worker.leave()
    assert running.result(WAIT_S) == "told to leave"
    assert stream.hear() == "leaving"
    assert own_threads() == []


def test_one_who_is_to_leave_while_nobody_answers_ends_at_once(server, worker, pool):
    server.server.stop(None).wait()
    running = pool.submit(worker.run)
    worker.leave()
    assert running.result(WAIT_S) == "told to leave"


def test_one_who_is_to_leave_before_it_begins_ends_at_once(worker):
    worker.leave()
    assert worker.run() == "told to leave"
    assert own_threads() == []


def test_a_server_that_is_away_is_told_of_in_one_line(server, worker, pool, monkeypatch, caplog):
    monkeypatch.setattr(session, "REDIAL_S", (0.01,))
    caplog.set_level("INFO")
    dials = threading.Semaphore(0)
    opened = session.Session.opened
    monkeypatch.setattr(session.Session, "opened", lambda *a: (dials.release(), opened(*a))[1])
    server.server.stop(None).wait()
    running = pool.submit(worker.run)
    for _ in range(5):
        assert dials.acquire(timeout=WAIT_S)
    worker.leave()
    running.result(WAIT_S)
    (line,) = [line for line in caplog.messages if "dialling again" in line]
    assert f"no connection to its port {server.port}, which workers come to: " in line


def test_a_name_that_does_not_resolve_is_dialled_until_the_worker_is_to_leave(pool, monkeypatch):
    monkeypatch.setattr(session, "REDIAL_S", (0.01,))
    lost = threading.Semaphore(0)
    before = session.Session.lost
    monkeypatch.setattr(session.Session, "lost", lambda *a: (lost.release(), before(*a))[1])
    made = Worker("w", "job", "no.such.host.invalid:1", num_cpus=1, training=None, validation=None)
    running = pool.submit(made.run)
    for _ in range(3):
        assert lost.acquire(timeout=WAIT_S)
    made.leave()
    assert running.result(WAIT_S) == "told to leave"
