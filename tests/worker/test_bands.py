"""Bands of a layer have the bits of the whole, go out one after the other, and are left off where bits differ."""

import itertools

import numpy as np
import pytest

from lockstep_proto import codec
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import training_pb2
from lockstep_worker import bands, stacking
from lockstep_worker.bands import Bands
from lockstep_worker.engine import Engine
from lockstep_worker.following import Task
from lockstep_worker.shard import Shard

SIZES = (784, 96, 10)
CHUNK = 8_000  # elements; the first layer has nine and a half of them
ROWS = 32


@pytest.fixture(autouse=True)
def no_answers_kept():
    bands._keep_bits.cache_clear()
    stacking._keeps_bits.cache_clear()
    yield
    bands._keep_bits.cache_clear()
    stacking._keeps_bits.cache_clear()


def layout(sizes=SIZES, dtype="float32"):
    return Layout(sizes, np.dtype(dtype))


def rows_of(cut, layer=0, num_rows=ROWS):
    return [(product.rows.start, product.rows.stop) for product in cut.products(layer, num_rows)]


def job(shards=2, rows=ROWS, **fields):
    layers = [{"units": 96, "activation": "relu"}, {"units": 10, "activation": "softmax"}]
    fields = {"network": {"inputs": 784, "layers": layers}, "loss": "cross_entropy", "epochs": 1} | fields
    return read_spec(fields | {"batch_size": shards * rows, "shards": shards})


def engine(spec, num_cpus=1, rows=ROWS, chunk=CHUNK):
    def shard(i):
        random = np.random.default_rng(i)
        x = random.normal(size=(rows, 784)).astype(Layout.from_spec(spec).dtype)
        return Shard(x, random.integers(0, 10, rows))

    return Engine(spec, chunk, training=shard, validation=shard, num_cpus=num_cpus)


def task(spec):
    return Task(1, 0, training_pb2.WORK_KIND_STEP, 0, 0, ((0, spec.shards),))


def parameters(spec):
    of = Layout.from_spec(spec)
    return np.random.default_rng(3).normal(0, 0.1, of.num_parameters).astype(of.dtype)


def sends(made, spec):
    sent = []
    made.answer(task(spec), parameters(spec), sent.append, lambda: False)
    return sent


def answer(spec, num_cpus=1, rows=ROWS):
    """What is sent, by chunk."""
    sent = sends(engine(spec, num_cpus, rows), spec)
    chunks = {chunk.chunk_index: (bytes(chunk.data), chunk.sums) for chunk in map(codec.decode_worker_message, sent)}
    assert len(sent) == len(chunks) == Chunking(layout().num_parameters, CHUNK).num_chunks
    return chunks


def whole_layers(monkeypatch):
    monkeypatch.setattr(bands, "_cuts", lambda *_: [])


def test_a_large_layer_is_cut_where_chunks_begin_and_kernels_have_no_edges():
    of = layout()
    cut = Bands(of, Chunking(of.num_parameters, CHUNK))
    assert rows_of(cut) == [(0, 176), (176, 336), (336, 592), (592, 784)], "the first and the last may be thin"
    assert rows_of(cut, 1) == [(0, 96)]
    (first, *_) = cut.products(0, ROWS)
    assert first.rows.stop % 16 == 0
    assert 0 <= first.rows.stop * 96 - 2 * CHUNK < 16 * 96, "a chunk ends a few rows above the cut"


def test_bands_make_up_the_flat_vector():
    of = layout((1024, 900, 700, 10))
    slices = Bands(of, Chunking(of.num_parameters, 30_000)).slices
    assert len(slices) > 6
    assert slices[0].start == 0
    assert slices[-1].stop == of.num_parameters
    assert all(a.stop == b.start for a, b in itertools.pairwise(slices))


def test_layers_whose_chunks_go_out_together_are_not_cut():
    of = layout()
    assert rows_of(Bands(of, Chunking(of.num_parameters, of.num_parameters))) == [(0, 784)]
    assert rows_of(Bands(of)) == [(0, 784)]


def test_stacked_shards_of_few_rows_have_thin_products_of_which_the_last_ends_the_band():
    of = layout()
    cut = Bands(of)
    thin = [(product.rows.start, product.rows.stop, product.bands) for product in cut.products(0, 16, 2)]
    assert thin == [(0, 256, ()), (256, 512, ()), (512, 784, (0,))]
    assert rows_of(cut, 0, 16) == [(0, 784)], "not of one shard"
    assert [product.bands for product in cut.products(0, 17, 2)] == [(0,)], "nor of more rows"


@pytest.mark.parametrize("changes", [{}, {"dtype": "float64"}, {"wire_dtype": "bfloat16"}])
def test_thin_products_have_the_bits_of_whole_layers(monkeypatch, changes):
    spec = job(5, 16, **changes)

    def value():
        (sent,) = sends(engine(spec, rows=16, chunk=layout().num_parameters), spec)
        return sent[codec.NODE_HEADER_BYTES :]

    found = value()
    monkeypatch.setattr(bands, "_FEW_ROWS", 0)
    assert found == value()


@pytest.mark.parametrize("changes", [{}, {"dtype": "float64"}, {"wire_dtype": "bfloat16"}])
@pytest.mark.parametrize(("shards", "rows"), [(1, 32), (2, 15), (2, 32), (5, 16), (1, 9000)])
@pytest.mark.parametrize("num_cpus", [1, 2])
def test_bands_have_the_bits_of_whole_layers(monkeypatch, changes, shards, rows, num_cpus):
    spec = job(shards, rows, **changes)
    found = answer(spec, num_cpus, rows)
    whole_layers(monkeypatch)
    assert found == answer(spec, 1, rows)


def test_chunks_go_out_band_by_band():
    spec, sent, after = job(4), [], []
    (share,) = engine(spec).begin(task(spec), parameters(spec), sent.append, lambda: False).shares
    for _ in share:
        after.append(len(sent))
    assert after == [2, 4, 7, 9, 10], "of the bands of the first layer, and of the last one"
    indices = [codec.decode_worker_message(message).chunk_index for message in sent]
    assert indices == list(range(10))


@pytest.mark.parametrize("num_cpus", [1, 2])
def test_where_bands_have_other_bits_the_layer_is_one_product(monkeypatch, num_cpus):
    expected = answer(job(), num_cpus)
    bands._keep_bits.cache_clear()
    product, seen = np.matmul, []

    def other_bits(a, b, out):
        product(a, b, out=out)
        seen.append(out.shape)
        if out.shape[1] == 96 and out.shape[0] in (176, 256):  # bands; no shard has so many rows
            out *= 1.02
        return out

    monkeypatch.setattr(np, "matmul", other_bits)
    assert answer(job(), num_cpus) == expected
    assert (256, 96) in seen, "it was tried"
    assert seen.count((784, 96)) > 2
