"""Workers and a job's run over real gRPC, without Ray: the adapters at both ends of an exchange."""

import asyncio
import errno
import itertools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest

from lockstep_proto import channels, frames, shared
from lockstep_proto.calls import ClientCall, ServerCall
from lockstep_proto.layout import Layout, digest
from lockstep_proto.v1 import numerics_pb2, service_pb2, training_pb2, training_pb2_grpc
from lockstep_server import endpoint
from lockstep_server.effects import Send
from lockstep_server.endpoint import Endpoint
from lockstep_server.exchange import Exchange
from lockstep_server.forking import version_0
from lockstep_server.initial import initial_parameters
from lockstep_server.metrics import Metrics
from lockstep_server.outbox import MAX_VERSIONS, Outbox
from lockstep_server.run import JobRun
from lockstep_worker import conversation
from lockstep_worker.errors import WorkerError
from lockstep_worker.exchange import Worker
from tests import plain_loop
from tests.plain_loop import Settings
from tests.shards import shards_of
from tests.test_same_bits import spec_of

RNG = np.random.default_rng(21)
X = RNG.normal(size=(301, 12)).astype(np.float32)
Y = RNG.integers(0, 4, 301)
SETTINGS = Settings(sizes=(12, 600, 500, 4), batch=64, epochs=4, momentum=0.9)
WAIT_S = 60.0


class Listener:
    """Keeps what a run tells."""

    def __init__(self):
        self.events, self.steps, self.epochs = [], [], []
        self.outcome = None
        self.ending = threading.Event()
        self.at_step = {}

    def event(self, severity, message):
        self.events.append(message)

    def step(self, record):
        self.steps.append(record)
        self.at_step.pop(record.step, lambda: None)()

    def epoch(self, record):
        self.epochs.append(record)

    def version(self, kept):
        pass

    def gave_up(self, worker_id):
        pass

    def changed(self):
        pass

    def ended(self, outcome):
        self.outcome = outcome
        self.ending.set()


class Host:
    """A server with one run, on an event loop in a thread of its own."""

    def __init__(
        self,
        settings=SETTINGS,
        numerics=None,
        max_unsummed_bytes=1 << 30,
        shares_memory=True,
        lease_s=WAIT_S,
        **changes,
    ):
        self.spec = spec_of(settings)
        for name, value in changes.items():
            setattr(self.spec.workers, name, value)
        self.listener = Listener()
        self.calls = []
        self.numerics = numerics
        self.max_unsummed_bytes = max_unsummed_bytes
        self.lease_s = lease_s
        self.shares_memory = shares_memory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.address = self.call(self._start())
        self.pool = ThreadPoolExecutor()
        self.workers = []

    async def _start(self):
        self.run = JobRun(
            "job",
            self.spec,
            num_rows=len(X),
            num_validation_rows=0,
            attempt=1,
            start=version_0(initial_parameters(self.spec)),
            listener=self.listener,
            lease_s=self.lease_s,
            checkpoint_s=1e9,
            max_unsummed_bytes=self.max_unsummed_bytes,
            shares_memory=self.shares_memory,
            numerics=self.numerics,
            metrics=Metrics(),
        )
        exchange = Exchange(
            find_run=lambda job_id: self.run if job_id == "job" and not self.run.training.ended else None,
            has_ended=lambda job_id: job_id == "job" and self.run.training.ended,
        )
        self.endpoint = Endpoint(exchange, "127.0.0.1", 0, self.observe)
        self.endpoint.start()
        return f"127.0.0.1:{self.endpoint.port - 1}"  # the server's own; workers come to the one after it

    async def _stop(self):
        self.run.close()
        self.endpoint.close()
        await asyncio.sleep(0)  # the task that looks at the time ends

    def observe(self, method, code, seconds):
        self.calls.append((method, code))

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def worker(self, name, num_cpus=1):
        shards = shards_of(self.spec.shards, X, Y)
        made = Worker(name, "job", self.address, num_cpus=num_cpus, training=shards, validation=shards)
        self.workers.append(made)
        return made, self.pool.submit(made.run)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.call(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        for worker in self.workers:
            worker.leave()  # one that has not heard of the job's end would dial for ever
        self.pool.shutdown()

    @property
    def digest(self):
        assert self.listener.ending.wait(WAIT_S), self.run.phase
        return digest(Layout.from_spec(self.spec), self.run.training.update.parameters)


@pytest.fixture(scope="module")
def expected():
    return plain_loop.train(SETTINGS, X, Y).digest(SETTINGS)


@pytest.mark.parametrize("shares_memory", [True, False])
@pytest.mark.parametrize("cpus", [[1], [1, 1], [2], [2, 1, 1]])
def test_workers_train_a_job_to_its_end_and_hear_of_it(cpus, shares_memory, expected):
    with Host(shares_memory=shares_memory) as host:
        futures = [host.worker(f"w{i}", num_cpus)[1] for i, num_cpus in enumerate(cpus)]
        assert host.digest == expected
        assert [future.result(WAIT_S) for future in futures] == ["the job has ended"] * len(cpus)
        assert host.listener.outcome.stop_reason == service_pb2.STOP_REASON_EPOCHS
        assert all(record.compute_s > 0 for record in host.listener.steps)


def test_a_worker_that_comes_after_the_end_hears_of_it(expected):
    with Host() as host:
        host.worker("a")
        assert host.digest == expected
        assert host.worker("b")[1].result(WAIT_S) == "the job has ended"


@pytest.fixture
def sent(monkeypatch):
    """The messages that are sent through streams, by either end."""
    sent = []
    for end in (ClientCall, ServerCall):

        def send(call, *pieces, send=end.send):
            sent.append(b"".join(pieces))
            send(call, *pieces)

        monkeypatch.setattr(end, "send", send)
    return sent


@pytest.mark.skipif(not shared.machine(), reason="this system has no memory to share")
def test_what_a_worker_on_the_same_machine_exchanges_does_not_go_through_its_stream(sent, expected):
    with Host() as host:
        host.worker("a")
        host.worker("b")
        assert host.digest == expected
        num_chunks = host.run.training.update.chunking.num_chunks
    large = [message for message in sent if len(message) >= shared.LEAST_BYTES]
    assert len(large) <= 2 * 2 * num_chunks  # of the versions that were made before they came, or as they did


@pytest.mark.skipif(not shared.machine(), reason="this system has no memory to share")
def test_a_worker_that_does_not_find_the_memory_says_nothing_of_it(sent, expected, monkeypatch):
    def find(place):
        raise FileNotFoundError(place.slots.descriptor)

    monkeypatch.setattr(conversation, "Memory", find)
    with Host() as host:
        host.worker("a")
        assert host.digest == expected
        num_chunks = host.run.training.update.chunking.num_chunks
    large = [message for message in sent if len(message) >= shared.LEAST_BYTES]
    assert len(large) > 2 * num_chunks * (host.run.training.version - 1)


def test_memory_that_is_not_shared_is_not_referred_to():
    with Host(shares_memory=False) as host:
        hello = training_pb2.WorkerHello(job_id="job", worker_id="w", num_cpus=1, machine=shared.machine())
        reference = training_pb2.WorkerMessage(reference=training_pb2.Reference(offset=4096, num_bytes=70_000))
        with grpc.insecure_channel(f"127.0.0.1:{host.endpoint.port}") as channel:
            messages = iter([training_pb2.WorkerMessage(hello=hello), reference])
            answers = training_pb2_grpc.TrainingServiceStub(channel).Exchange(messages)
            with pytest.raises(grpc.RpcError, match="a reference to memory that is not shared"):
                list(answers)


def test_bfloat16_travels_there_and_back():
    settings = replace(SETTINGS, bfloat16=True)
    with Host(settings) as host:
        for name, num_cpus in (("a", 1), ("b", 2)):
            host.worker(name, num_cpus)
        assert host.digest == plain_loop.train(settings, X, Y).digest(settings)


def test_workers_that_are_ahead_wait_where_little_room_is_given(expected, monkeypatch):
    told = []
    listen = endpoint._Connection.listen
    monkeypatch.setattr(endpoint._Connection, "listen", lambda *args: (told.append(args[1]), listen(*args)))
    with Host(max_unsummed_bytes=1, min=3) as host:
        for name in "abc":
            host.worker(name)
        assert host.digest == expected
    assert False in told


def test_a_worker_leaves_in_the_middle_and_another_comes(expected):
    with Host(min=2) as host:
        first, leaving = host.worker("first")
        host.listener.at_step = {5: first.leave, 9: lambda: host.worker("third", 2)}
        host.worker("second")
        assert host.digest == expected
        assert leaving.result(WAIT_S) == "told to leave"
        assert "worker first has left" in host.listener.events


def test_a_worker_whose_stream_breaks_dials_again_as_a_newcomer(expected):
    with Host() as host:
        worker, running = host.worker("a")
        host.listener.at_step = {7: lambda: worker._stream.cancel()}  # noqa: PLW0108  (there is no stream yet)
        assert host.digest == expected
        assert running.result(WAIT_S) == "the job has ended"
        assert any("its stream ended" in event for event in host.listener.events)


def test_a_worker_dials_until_its_job_runs_and_leaves_when_told(expected):
    with Host() as host:
        run, host.run = host.run, None
        _, running = host.worker("a")
        host.run = run
        assert host.digest == expected
        assert running.result(WAIT_S) == "the job has ended"
        late, waiting = host.worker("late")
        host.run = None
        late.leave()
        assert waiting.result(WAIT_S) in ("told to leave", "the job has ended")
        host.run = run


def test_a_worker_with_other_numerics_is_refused_naming_the_field():
    with Host(numerics=numerics_pb2.NumericsFingerprint(numpy_version="0.1")) as host:
        _, running = host.worker("odd")
        reason = running.result(WAIT_S)
        assert reason.startswith("worker odd is refused: its numerics differ from the job's in ")
        assert host.listener.events == [reason]


def broken_worker(host, name):
    def no_room(shard):
        raise MemoryError("no room for shard")

    made = Worker(name, "job", host.address, num_cpus=1, training=no_room, validation=no_room)
    return host.pool.submit(made.run)


def test_a_computation_that_fails_costs_its_worker_and_others_go_on(expected):
    with Host() as host:
        assert isinstance(broken_worker(host, "broken").exception(WAIT_S), WorkerError)
        host.worker("a")
        assert host.digest == expected


def test_a_step_that_no_worker_can_compute_fails_the_job_with_its_cause():
    with Host() as host:
        for name in "abc":
            assert isinstance(broken_worker(host, name).exception(WAIT_S), WorkerError)
        assert host.listener.ending.wait(WAIT_S)
        assert host.listener.outcome.state == service_pb2.JOB_STATE_FAILED
        assert host.listener.outcome.message == "a worker cannot compute step 0: MemoryError: no room for shard"


def raise_a_defect(*_):
    raise KeyError("nobody foresaw this")


@pytest.mark.parametrize("event", ["worker_joined", "chunk_received", "tick"])
def test_an_error_that_nobody_foresaw_fails_the_job_instead_of_leaving_it_to_wait(event, monkeypatch):
    with Host(lease_s=2.0 if event == "tick" else WAIT_S) as host:
        monkeypatch.setattr(host.run.training, event, raise_a_defect)
        if event != "tick":
            host.worker("a")
        assert host.listener.ending.wait(WAIT_S)
        assert host.listener.outcome.error_type == service_pb2.ERROR_TYPE_INTERNAL
        assert host.listener.outcome.message == "a defect in Lockstep: KeyError('nobody foresaw this')"


def exchange_of(host):
    """The method as another implementation of gRPC calls it."""
    name, port = channels.exchange_address(host.address)
    channel = channels.connect(f"{name}:{port}")
    return channel, channel.stream_stream("/lockstep.v1.TrainingService/Exchange")


HEARTBEAT = training_pb2.WorkerMessage(heartbeat=training_pb2.Heartbeat())
NO_CPUS = training_pb2.WorkerMessage(hello=training_pb2.WorkerHello(job_id="job", worker_id="w"))
NO_JOB = training_pb2.WorkerMessage(hello=training_pb2.WorkerHello(job_id="other", worker_id="w", num_cpus=1))


@pytest.mark.parametrize(
    ("first", "code", "reason"),
    [
        (HEARTBEAT.SerializeToString(), "INVALID_ARGUMENT", "the first message must be a hello"),
        (NO_CPUS.SerializeToString(), "INVALID_ARGUMENT", "a worker has at least one CPU"),
        (b"\xff", "INVALID_ARGUMENT", "a message that cannot be read"),
        (NO_JOB.SerializeToString(), "UNAVAILABLE", "job other does not run now"),
    ],
)
def test_a_stream_that_does_not_begin_with_a_good_hello_is_refused(first, code, reason):
    with Host() as host:
        channel, exchange = exchange_of(host)
        with channel, pytest.raises(grpc.RpcError) as caught:
            next(exchange(iter([first])))
        assert caught.value.code().name == code
        assert reason in caught.value.details()
    assert host.calls == [("lockstep.v1.TrainingService/Exchange", code)]


def test_another_method_is_not_there():
    with Host() as host:
        channel, _ = exchange_of(host)
        with channel, pytest.raises(grpc.RpcError) as caught:
            next(channel.stream_stream("/lockstep.v1.JobService/Watch")(iter([])))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert host.calls == []


def dial(host):
    connected = socket.create_connection(channels.exchange_address(host.address), WAIT_S)
    connected.settimeout(WAIT_S)
    return connected


def everything(connected):
    return b"".join(iter(lambda: connected.recv(65_536), b""))


def test_a_connection_without_a_call_is_closed(monkeypatch):
    monkeypatch.setattr(endpoint, "IDLE_S", 0.05)
    said = threading.Event()
    with Host() as host:
        host.loop.call_soon_threadsafe(said.wait, WAIT_S)  # until then nothing is taken in, and no time counts
        with dial(host) as connected:
            connected.sendall(frames.PREFACE)
            said.set()
            assert everything(connected)


def test_who_does_not_speak_grpc_is_told_and_closed():
    with Host() as host, dial(host) as connected:
        connected.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"this is no HTTP/2" in everything(connected)


def test_a_listener_without_files_waits_instead_of_trying_on_and_on(monkeypatch, caplog, expected):
    monkeypatch.setattr(endpoint, "ACCEPT_S", 0.05)
    with Host() as host:
        given = host.endpoint._listener
        tries = []

        class Full:
            fileno, close = given.fileno, given.close

            def accept(self):
                tries.append(host.loop.time())
                if len(tries) <= 2:
                    raise OSError(errno.EMFILE, "Too many open files")
                return given.accept()

        host.endpoint._listener = Full()
        host.worker("a")
        assert host.digest == expected
    assert len(tries) == 3
    assert min(b - a for a, b in itertools.pairwise(tries)) >= endpoint.ACCEPT_S
    assert caplog.messages.count("workers cannot come in now: [Errno 24] Too many open files") == 2


def test_a_worker_that_comes_twice_is_heard_on_its_newer_stream_alone():
    with Host(min=2) as host:
        hello = training_pb2.WorkerHello(job_id="job", worker_id="w", num_cpus=1)
        host.run.numerics = hello.numerics

        async def comes_twice():
            first, second = Outbox(Taken()), Outbox(Taken())
            host.run.join(hello, first)
            host.run.join(hello, second)
            while first.pop() is not None:
                pass
            leaving = training_pb2.WorkerMessage(leaving=training_pb2.WorkerLeaving())
            host.run.received("w", first, leaving)
            host.run.gone("w", first)
            there = len(host.run.workers)
            host.run.received("w", second, leaving)
            return first.over, there, len(host.run.workers)

        assert host.call(comes_twice()) == (True, 1, 0)


def outbox_of(run):
    """Have a worker `w` join, which reads nothing. Return its outbox."""
    hello = training_pb2.WorkerHello(job_id="job", worker_id="w", num_cpus=1)
    run.numerics = hello.numerics
    outbox = Outbox(Taken())
    run.join(hello, outbox)
    return outbox


def test_a_worker_that_is_not_needed_is_told_to_forget_what_it_has():
    with Host() as host:

        async def falls_behind():
            outbox = outbox_of(host.run)
            host.run._carry(host.run.training.worker_behind("w"))
            return [outbox.pop() for _ in range(3)]

        first, last, nothing = host.call(falls_behind())
        assert training_pb2.ServerMessage.FromString(first).HasField("welcome")
        assert training_pb2.ServerMessage.FromString(last).HasField("forget")
        assert nothing is None


def test_who_has_not_read_yet_that_it_is_to_forget_gets_all_of_what_it_is_given_then():
    with Host() as host:

        async def is_slow():
            outbox = outbox_of(host.run)
            for _ in range(3):
                host.run._carry(host.run.training.worker_behind("w"))
            later = host.run.training.version + MAX_VERSIONS
            host.run._carry([Send(["w"], later, b"chunk"), Send(["w"], later + 1, b"chunk of the next")])
            return [outbox.pop() for _ in range(5)]

        _, told, *rest = host.call(is_slow())
        assert training_pb2.ServerMessage.FromString(told).HasField("forget")
        assert rest == [b"chunk", b"chunk of the next", None]


class Taken:
    """Counts how often there was something to send."""

    def __init__(self):
        self.num_filled = 0

    def __call__(self):
        self.num_filled += 1


def test_an_outbox_gives_everything_up_to_its_last_message():
    outbox = Outbox(filled := Taken())
    outbox.put(0, b"a")
    outbox.close(b"z")
    assert filled.num_filled == 2
    assert not outbox.over
    assert [outbox.pop(), outbox.pop(), outbox.pop()] == [b"a", b"z", None]
    assert outbox.over


def test_an_outbox_says_when_a_version_would_be_one_too_many():
    outbox = Outbox(Taken())
    assert not outbox.behind(7)
    outbox.put(5, b"")
    assert not outbox.behind(6)
    assert outbox.behind(7)
    outbox.replace(b"forget")
    assert not outbox.behind(7)
    outbox.put(6, b"")
    assert not outbox.behind(7)
    assert outbox.behind(8), "the oldest of those with a version counts"


def test_what_belongs_to_no_version_is_not_replaced():
    outbox = Outbox(filled := Taken())
    outbox.put(None, b"welcome")
    for _ in range(2):
        outbox.put(3, b"chunk")
        outbox.replace(b"forget")
    assert filled.num_filled == 5
    outbox.close(b"goodbye")
    assert [outbox.pop() for _ in range(4)] == [b"welcome", b"forget", b"goodbye", None]


def test_a_heartbeat_that_nobody_has_read_makes_nobody_late():
    outbox = Outbox(Taken())
    outbox.put_if_empty(b"heartbeat")
    outbox.put_if_empty(b"another")
    assert not outbox.behind(1000)
    assert [outbox.pop(), outbox.pop()] == [b"heartbeat", None]
