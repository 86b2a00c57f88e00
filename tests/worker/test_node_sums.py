import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep_proto import tree
from lockstep_proto.codec import Sums
from lockstep_proto.layout import Chunking, Layout
from lockstep_worker.node_sums import NodeSums

LAYOUT = Layout((3, 4, 5, 2), np.dtype(np.float32))
CHUNKING = Chunking(LAYOUT.num_parameters, 7)
BANDS = LAYOUT.layer_slices


def value(shard):
    return np.random.default_rng(shard).normal(size=LAYOUT.num_parameters).astype(np.float32)


def plain(lo, hi):
    if hi - lo == 1:
        return value(lo)
    middle = tree.split(lo, hi)
    return plain(lo, middle) + plain(middle, hi)


class Emitted:
    def __init__(self):
        self.chunks = {}
        self.order = []
        self.lock = threading.Lock()

    def __call__(self, node, index, sums, values):
        with self.lock:
            assert (node, index) not in self.chunks, "handed out once"
            self.chunks[node, index] = (sums, values.copy())
            self.order.append((node, index))


def compute(sums, shard):
    gradient = sums.buffer()
    gradient.flat[...] = value(shard)
    for layer in (0, 1, 2):
        sums.band_done((shard, shard + 1), layer, gradient, Sums(1.0, float(shard), 0.0))


def check(emitted, ranges, num_shards):
    nodes = [node for lo, hi in ranges for node in tree.top_nodes(lo, hi, num_shards)]
    assert set(emitted.chunks) == {(node, i) for node in nodes for i in range(CHUNKING.num_chunks)}
    for (node, index), (sums, values) in emitted.chunks.items():
        lo, hi = CHUNKING.range(index)
        assert values.tobytes() == plain(*node)[lo:hi].tobytes()
        assert sums == Sums(node[1] - node[0], sum(range(*node)), 0.0)


@settings(max_examples=60)
@given(st.integers(1, 12), st.data())
def test_top_nodes_come_out_whole_in_any_order_of_shards(num_shards, data):
    lo = data.draw(st.integers(0, num_shards - 1))
    hi = data.draw(st.integers(lo + 1, num_shards))
    shards = data.draw(st.permutations(range(lo, hi)))
    sums, emitted = NodeSums(LAYOUT, BANDS, CHUNKING, num_shards), Emitted()
    sums.begin(tree.top_nodes(lo, hi, num_shards), emitted)
    for shard in shards:
        compute(sums, shard)
    check(emitted, [(lo, hi)], num_shards)


def test_threads_side_by_side():
    for _ in range(20):
        sums, emitted = NodeSums(LAYOUT, BANDS, CHUNKING, 8), Emitted()
        sums.begin([(0, 8)], emitted)
        threads = [threading.Thread(target=compute, args=(sums, shard)) for shard in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(emitted, [(0, 8)], 8)


def test_chunks_go_out_in_order_as_soon_as_their_layers_are_done():
    sums, emitted = NodeSums(LAYOUT, BANDS, CHUNKING, 2), Emitted()
    sums.begin([(0, 2)], emitted)
    compute(sums, 0)
    gradient = sums.buffer()
    gradient.flat[...] = value(1)
    assert emitted.order == []
    done = []
    for layer in (0, 1, 2):
        sums.band_done((1, 2), layer, gradient, Sums(1.0, 1.0, 0.0))
        done.append(len(emitted.order))
    assert 0 < done[0] < done[1] < done[2] == CHUNKING.num_chunks
    assert [index for _, index in emitted.order] == list(range(CHUNKING.num_chunks))


def test_buffers_are_used_again():
    sums = NodeSums(LAYOUT, BANDS, CHUNKING, 8)
    used = set()
    for _ in range(3):
        sums.begin([(0, 8)], Emitted())
        for shard in range(8):
            gradient = sums.buffer()
            used.add(id(gradient.flat))
            gradient.flat[...] = value(shard)
            for layer in (0, 1, 2):
                sums.band_done((shard, shard + 1), layer, gradient, Sums(1.0, 0.0, 0.0))
    assert len(used) <= 4, "log2(V) + 1"
