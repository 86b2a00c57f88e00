import pytest

from lockstep_proto.layout import Layout
from lockstep_proto.spec import read_spec
from lockstep_server.chunks import chunking_of

MIB = 1 << 20
SLOW = [(True, "float32"), (False, "bfloat16")]  # or may be
ANY = [(False, "float32"), *SLOW]


def cut(sizes, *, far=False, wire_dtype=None, dtype="float32"):
    network = {"inputs": sizes[0], "layers": [{"units": units} for units in sizes[1:]]}
    fields = {"network": network, "loss": "norm", "batch_size": 8, "epochs": 1}
    spec = read_spec(fields | {"wire_dtype": wire_dtype or dtype, "dtype": dtype})
    layout = Layout.from_spec(spec)
    return layout, chunking_of(spec, layout, far=far)


@pytest.mark.parametrize(("far", "wire_dtype"), ANY)
@pytest.mark.parametrize("sizes", [(4, 3), (64, 128, 10)])
def test_a_tiny_network_is_one_chunk(sizes, far, wire_dtype):
    _, chunking = cut(sizes, far=far, wire_dtype=wire_dtype)
    assert chunking.num_chunks == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(784, 512, 256, 10), (1024, 4096, 4096, 1000), (10, 2000, 2000, 2), (5000, 5000, 1)])
def test_chunks_have_a_mebibyte_at_most_and_not_much_less(sizes, dtype):
    layout, chunking = cut(sizes, dtype=dtype)
    assert 0.75 * MIB <= chunking.chunk_elements * layout.dtype.itemsize <= MIB


@pytest.mark.parametrize(("far", "wire_dtype"), SLOW)
@pytest.mark.parametrize(
    ("sizes", "num_chunks"),
    [
        ((64, 2000, 10), 3),
        ((784, 512, 256, 10), 11),
        ((2048, 512, 10), 17),
        ((1024, 1024, 1024), 16),
        ((1, 4097, 42, 139), 3),
        ((2000, 10_000, 10), 77),  # of a mebibyte
    ],
)
def test_where_the_network_may_be_slow_there_are_many_chunks_unless_they_were_small(sizes, num_chunks, far, wire_dtype):
    _, chunking = cut(sizes, far=far, wire_dtype=wire_dtype)
    assert chunking.num_chunks == num_chunks
    assert chunking.chunk_elements >= 0.75 * 65_536


@pytest.mark.parametrize(("far", "wire_dtype"), ANY)
@pytest.mark.parametrize("sizes", [(784, 512, 256, 10), (600, 1800, 600, 4), (300, 700, 300, 300)])
def test_a_large_first_layer_of_few_chunks_ends_with_one(sizes, far, wire_dtype):
    layout, chunking = cut(sizes, far=far, wire_dtype=wire_dtype)
    assert layout.layer_slices[0].stop % chunking.chunk_elements == 0
    assert chunking.num_chunks > 1


@pytest.mark.parametrize(
    "sizes",
    [
        (1024, 4096, 4096, 1000),  # many chunks
        (5000, 5000, 1),
        (10, 2000, 2000, 2),  # a small layer
        (130, 1010, 4000, 4000),
        (2048, 512, 10),  # made up by five chunks and a half, or by many more
    ],
)
def test_elsewhere_chunks_are_whole_blocks_of_the_norms(sizes):
    assert cut(sizes)[1].chunk_elements == 4 * 65_536
