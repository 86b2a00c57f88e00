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
    assert MIB // 2 <= chunking.chunk_elements * layout.dtype.itemsize <= MIB


@pytest.mark.parametrize(("far", "wire_dtype"), SLOW)
@pytest.mark.parametrize("sizes", [(64, 2000, 10), (784, 512, 256, 10), (2048, 512, 10), (1024, 1024, 1024)])
def test_where_the_network_may_be_slow_there_are_many_chunks_none_of_them_small(sizes, far, wire_dtype):
    layout, chunking = cut(sizes, far=far, wire_dtype=wire_dtype)
    assert chunking.num_chunks >= min(16, layout.num_parameters // (1 << 14))
    assert chunking.chunk_elements >= 1 << 13


@pytest.mark.parametrize(("far", "wire_dtype"), ANY)
@pytest.mark.parametrize("sizes", [(784, 512, 256, 10), (600, 1800, 600, 4), (300, 700, 300, 300), (2048, 512, 10)])
def test_the_first_layer_ends_with_a_chunk_where_it_has_few_of_them(sizes, far, wire_dtype):
    layout, chunking = cut(sizes, far=far, wire_dtype=wire_dtype)
    first = layout.layer_slices[0].stop
    behind = -first % chunking.chunk_elements  # elements of other layers in the last chunk of the first one
    assert behind < -(-first // chunking.chunk_elements)


@pytest.mark.parametrize("sizes", [(1024, 4096, 4096, 1000), (10, 2000, 2000, 2), (5000, 5000, 1)])
def test_elsewhere_chunks_are_whole_blocks_of_the_norms(sizes):
    assert cut(sizes)[1].chunk_elements == 4 * 65_536
