"""What a step costs that no clock is needed for: bytes, messages, copies and memory.

All of it is exact, so these tests hold what makes a step fast without measuring how fast it is.
"""

import itertools
import tracemalloc
from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest

from lockstep_proto import codec
from lockstep_proto.codec import NODE_HEADER_BYTES, PARAMETERS_HEADER_BYTES, NodeChunk, ParameterChunk
from lockstep_proto.v1 import training_pb2
from lockstep_server.chunks import CHUNK_BYTES
from lockstep_server.room import own_memory
from lockstep_worker.engine import Engine
from lockstep_worker.following import Following, Task
from tests.messages import parameter_message, read
from tests.one_thread import OneThreadCluster
from tests.plain_loop import Settings
from tests.shards import shards_of
from tests.test_same_bits import spec_of

RNG = np.random.default_rng(29)
ROWS = 64
SIZES = {"one chunk": (12, 20, 4), "several chunks": (600, 1800, 600, 4)}
SHARDS = 8
FIRST, LAST = 1, 3  # the steps that are looked at: the first one makes what is used again


def job(sizes, **changes):
    return spec_of(Settings(sizes=sizes, shards=SHARDS, batch=16, epochs=2, momentum=0.9, **changes))


def data(sizes):
    return RNG.normal(size=(ROWS, sizes[0])).astype(np.float32), RNG.integers(0, sizes[-1], ROWS)


def num_parameters(sizes):
    return sum(n_in * n_out + n_out for n_in, n_out in itertools.pairwise(sizes))


class Cluster(OneThreadCluster):
    """One in which no time passes, so that nobody is late and nothing is computed twice."""

    @property
    def now(self):
        return 0.0

    @now.setter
    def now(self, value):
        pass


def cluster(sizes, workers, make=Cluster, shards=SHARDS, **changes):
    spec = job(sizes, **changes)
    spec.shards = shards
    made = make(spec, *data(sizes))
    for i in range(workers):
        made.join(f"w{i}")
    return made


def run_to(made, version):
    while made.training.version < version:
        made.turn()


class Counted(deque):
    """A stream that keeps what is sent on it, and counts it by what it is."""

    def __init__(self, messages, decode):
        super().__init__(messages)
        self.decode = decode
        self.sent, self.num_messages, self.num_bytes = [], Counter(), Counter()

    def append(self, message):
        self.sent.append(message)
        kind = type(self.decode(message)).__name__
        self.num_messages[kind] += 1
        self.num_bytes[kind] += codec.message_bytes(message) if isinstance(message, ParameterChunk) else len(message)
        super().append(message)


def count(made):
    for peer in made.peers.values():
        peer.to_worker = Counted(peer.to_worker, read)
        peer.to_server = Counted(peer.to_server, codec.decode_worker_message)


# Bytes and messages.


def chunk_elements(sizes, *, bfloat16=False):
    """Five chunks are the first layer of the large network, eight where bfloat16 travels; the small one has one."""
    return (135_225 if bfloat16 else 216_360) if sizes == SIZES["several chunks"] else num_parameters(sizes)


def num_chunks(sizes, *, bfloat16=False):
    return -(-num_parameters(sizes) // chunk_elements(sizes, bfloat16=bfloat16))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("bfloat16", "element_bytes"), [(False, 4), (True, 2)])
def test_a_step_sends_the_gradient_up_and_the_parameters_down_once_for_each_worker(
    sizes, workers, bfloat16, element_bytes
):
    made = cluster(sizes, workers, bfloat16=bfloat16)
    run_to(made, FIRST)
    count(made)
    run_to(made, LAST)
    steps = LAST - FIRST
    size = element_bytes * num_parameters(sizes)
    chunks = num_chunks(sizes, bfloat16=bfloat16)
    for peer in made.peers.values():
        assert peer.to_server.num_messages == {"NodeChunk": steps * chunks}
        assert peer.to_server.num_bytes == {"NodeChunk": steps * (size + chunks * NODE_HEADER_BYTES)}
        assert peer.to_worker.num_messages == {"ParameterChunk": steps * chunks, "ServerMessage": steps}
        assert peer.to_worker.num_bytes["ParameterChunk"] == steps * (size + chunks * PARAMETERS_HEADER_BYTES)
        assert peer.to_worker.num_bytes["ServerMessage"] < 40 * steps  # Work


def test_shards_do_not_show_in_what_is_sent():
    """Sums are made where the shards are: eight shards on two workers are two nodes."""
    found = []
    for shards in (2, 8):
        made = cluster(SIZES["several chunks"], 2, shards=shards)
        run_to(made, FIRST)
        count(made)
        run_to(made, LAST)
        found.append([(dict(p.to_server.num_bytes), dict(p.to_worker.num_messages)) for p in made.peers.values()])
    assert found[0] == found[1]


def test_an_uneven_share_costs_the_top_nodes_of_its_range():
    """Three workers on eight shards have [0, 3), [3, 6) and [6, 8): two nodes, two and one."""
    sizes = SIZES["one chunk"]
    made = cluster(sizes, 3)
    run_to(made, FIRST)
    count(made)
    run_to(made, LAST)
    sent = [peer.to_server.num_messages["NodeChunk"] // (LAST - FIRST) for peer in made.peers.values()]
    assert sorted(sent) == [1, 2, 2]


# Copies.


class Copies:
    """Stands in for the codec's encoder, which copies a chunk once, and notes whose memory it reads."""

    def __init__(self, monkeypatch):
        self.sources = []
        encode = codec.encode_node_chunk

        def double(chunk):
            self.sources.append(np.frombuffer(chunk.data, np.uint8))
            return encode(chunk)

        monkeypatch.setattr(codec, "encode_node_chunk", double)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_chunk_is_copied_once_by_each_worker_that_sends_it(monkeypatch, workers):
    sizes = SIZES["several chunks"]
    made = cluster(sizes, workers)
    run_to(made, FIRST)
    copies = Copies(monkeypatch)
    run_to(made, LAST)
    chunks = (LAST - FIRST) * num_chunks(sizes)
    assert len(copies.sources) == workers * chunks


def test_what_workers_send_is_encoded_from_buffers_that_every_step_uses_again(monkeypatch):
    made = cluster(SIZES["several chunks"], 1)
    run_to(made, FIRST)
    copies = Copies(monkeypatch)
    run_to(made, LAST)
    sources = copies.sources
    half = len(sources) // (LAST - FIRST)
    for first, second in zip(sources[:half], sources[half:], strict=True):
        assert np.shares_memory(first, second)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_the_server_sends_the_parameters_from_where_the_update_has_written_them(monkeypatch, clip_norm):
    made = cluster(SIZES["several chunks"], 1, clip_norm=clip_norm)
    run_to(made, FIRST)
    optimizer, written = made.training.update._optimizer, []

    def double(out, *arguments):
        written.append(out)
        optimizer.update(out, *arguments)

    monkeypatch.setattr(made.training.update, "_optimizer", replace(optimizer, update=double))
    count(made)
    run_to(made, FIRST + 1)
    chunks = [m for m in made.peers["w0"].to_worker.sent if isinstance(m, ParameterChunk)]
    assert chunks
    for chunk in chunks:
        _, data = codec.encode_parameter_chunk(chunk)
        values = np.frombuffer(data, np.float32)
        lying_in_it = [out for out in written if np.shares_memory(out, values)]
        assert sum(out.size for out in lying_in_it) == values.size
        assert (np.concatenate(lying_in_it) == values).all()


def test_what_is_received_is_used_where_it_lies():
    values = np.arange(1000, dtype=np.float32)
    up = codec.encode_node_chunk(NodeChunk(1, 2, (0, 8), 0, codec.Sums(1.0, 2.0, 3.0), 0.5, values.data))
    down = parameter_message(ParameterChunk(1, 2, 0, values.data))
    for message, decode in ((up, codec.decode_worker_message), (down, codec.decode_server_message)):
        assert np.shares_memory(np.frombuffer(decode(message).data, np.uint8), np.frombuffer(message, np.uint8))


def test_the_server_updates_from_the_message_that_brought_the_root(monkeypatch):
    made = cluster(SIZES["several chunks"], 1)
    run_to(made, FIRST)
    apply, found = made.training.update.apply, []

    def double(chunk_index, gradient_sum, weight):
        found.append(gradient_sum.base is not None and not gradient_sum.flags.writeable)
        return apply(chunk_index, gradient_sum, weight)

    monkeypatch.setattr(made.training.update, "apply", double)
    run_to(made, LAST)
    assert found
    assert all(found), "a view of bytes, and no copy of them"


def test_all_workers_are_sent_the_same_object():
    made = cluster(SIZES["several chunks"], 3)
    count(made)
    run_to(made, LAST)
    sent = ([m for m in peer.to_worker.sent if isinstance(m, ParameterChunk)] for peer in made.peers.values())
    first, *others = sent
    assert len(first) >= LAST
    for messages in others:
        assert all(a is b for a, b in zip(first, messages, strict=True))


# Memory.


class Peak:
    """The most memory that a block needs at once, beside what there was when it began."""

    def __enter__(self):
        self.before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        return self

    def __exit__(self, *exception):
        now, peak = tracemalloc.get_traced_memory()
        self.bytes = peak - self.before
        self.kept_bytes = now - self.before


@pytest.fixture
def traced():
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


BIG = SIZES["several chunks"]
BIG_BYTES = 4 * num_parameters(BIG)
CHUNKS = 3.5 * CHUNK_BYTES  # messages that are made, and what is not an array; the vector has eight and a half


def test_the_vector_is_large_beside_what_is_allowed():
    assert BIG_BYTES > 2 * CHUNKS


@pytest.mark.parametrize(("cpus", "num_shards"), [(1, 1), (1, 8), (2, 2), (2, 8)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.usefixtures("traced")
def test_a_worker_allocates_nothing_of_the_size_of_the_parameters_after_its_first_step(cpus, num_shards, dropout):
    spec = job(BIG, dropout=dropout)
    spec.shards, spec.batch_size.rows = num_shards, 16 * num_shards  # rows of a shard that can be stacked
    num_rows = LAST * spec.batch_size.rows
    x, y = RNG.normal(size=(num_rows, BIG[0])).astype(np.float32), RNG.integers(0, BIG[-1], num_rows)
    shards = shards_of(num_shards, x, y)
    engine = Engine(spec, CHUNK_BYTES // 4, training=shards, validation=shards, num_cpus=cpus)
    parameters = np.zeros(num_parameters(BIG), np.float32)
    for step in range(LAST):
        task = Task(1, step, training_pb2.WORK_KIND_STEP, 0, step, ((0, num_shards),))
        with Peak() as peak:
            engine.answer(task, parameters, lambda message: None, lambda: False)
        assert (peak.bytes < CHUNKS) == (step > 0)


@pytest.mark.usefixtures("traced")
def test_a_worker_takes_in_versions_without_allocating_after_the_second():
    following = Following(job(BIG), CHUNK_BYTES // 4)
    values = np.zeros(num_parameters(BIG), np.float32)
    chunks = [values[lo : lo + CHUNK_BYTES // 4].data for lo in range(0, values.size, CHUNK_BYTES // 4)]
    for version in range(4):
        with Peak() as peak:
            for index, chunk in enumerate(chunks):
                following.chunk(ParameterChunk(1, version, index, chunk))
            following.work(training_pb2.Work(version=version, kind=training_pb2.WORK_KIND_STEP))
            following.lend(training_pb2.WORK_KIND_STEP)
            following.give_back()
        assert (peak.bytes < CHUNK_BYTES / 10) == (version > 0)


@pytest.mark.usefixtures("traced")
def test_a_worker_takes_in_versions_in_shared_memory_without_copying_or_allocating():
    following = Following(job(BIG), CHUNK_BYTES // 4)
    rooms = [np.zeros(num_parameters(BIG), np.float32).data.cast("B").toreadonly() for _ in range(2)]
    ranges = [(lo, min(lo + CHUNK_BYTES, BIG_BYTES)) for lo in range(0, BIG_BYTES, CHUNK_BYTES)]
    for version in range(4):
        room = rooms[version % 2]
        with Peak() as peak:
            for index, (lo, hi) in enumerate(ranges):
                place = codec.Reference(lo, hi - lo)
                following.chunk(ParameterChunk(1, version, index, room, place))
            following.work(training_pb2.Work(version=version, kind=training_pb2.WORK_KIND_STEP))
            parameters = following.lend(training_pb2.WORK_KIND_STEP)
            following.give_back()
        assert peak.bytes < CHUNK_BYTES / 10
        assert parameters.size == num_parameters(BIG)
        assert parameters.ctypes.data == np.frombuffer(room, np.uint8).ctypes.data


class Metered(Cluster):
    """Meters the server's part of each message."""

    def __init__(self, *arguments, **options):
        self.peaks = []
        super().__init__(*arguments, **options)

    def hear(self, worker_id, message):
        with Peak() as peak:
            super().hear(worker_id, message)
        self.peaks.append(peak.bytes)


@pytest.mark.parametrize(
    ("optimizer", "bfloat16", "most"), [("sgd", False, 1.75), ("adam", False, 1.75), ("adam", True, 3.25)]
)
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.usefixtures("traced")
def test_the_server_allocates_the_messages_of_a_chunk_and_little_else(workers, optimizer, bfloat16, most):
    """A message, and the squares of a block for the norm.

    With bfloat16 also the chunk rounded and packed, half as large, its message, and a buffer for a value that has come
    and cannot be summed yet: how many of these there are at once is chance.
    """
    made = cluster(BIG, workers, Metered, optimizer=optimizer, bfloat16=bfloat16)
    rooms = itertools.cycle([own_memory(BIG_BYTES) for _ in range(6)])  # as there are rooms in shared memory
    made.training.update._room = lambda num_bytes: next(rooms)[:num_bytes]
    run_to(made, FIRST)
    made.peaks.clear()
    run_to(made, LAST)
    assert len(made.peaks) == (LAST - FIRST) * workers * num_chunks(BIG, bfloat16=bfloat16)
    assert max(made.peaks) < most * 4 * chunk_elements(BIG, bfloat16=bfloat16)


@pytest.mark.usefixtures("traced")
def test_what_a_cluster_holds_between_two_steps_does_not_grow():
    made = cluster(BIG, 2)
    held = []
    for version in range(1, 6):
        run_to(made, version)  # what is under way then are the messages of the version, which the server holds anyway
        held.append(tracemalloc.get_traced_memory()[0])
    assert max(held[2:]) - held[1] < CHUNK_BYTES
