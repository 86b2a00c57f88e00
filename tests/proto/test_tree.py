import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep_proto import tree

SHARDS = st.integers(1, 70)


def all_nodes(lo, hi):
    """Every node below [lo, hi), by the rule of the design: split at lo + the largest power of two below hi − lo."""
    yield (lo, hi)
    if hi - lo > 1:
        power = 1
        while power * 2 < hi - lo:
            power *= 2
        yield from all_nodes(lo, lo + power)
        yield from all_nodes(lo + power, hi)


@given(SHARDS)
def test_a_range_is_a_node_exactly_when_the_tree_has_it(num_shards):
    nodes = set(all_nodes(0, num_shards))
    for lo in range(-1, num_shards + 1):
        for hi in range(lo, num_shards + 2):
            assert tree.is_node(lo, hi, num_shards) == ((lo, hi) in nodes)


@given(SHARDS, st.data())
def test_top_nodes_are_the_fewest_nodes_that_make_up_a_range(num_shards, data):
    lo = data.draw(st.integers(0, num_shards))
    hi = data.draw(st.integers(lo, num_shards))
    nodes = tree.top_nodes(lo, hi, num_shards)
    assert [shard for a, b in nodes for shard in range(a, b)] == list(range(lo, hi))
    for node in nodes:
        if node != (0, num_shards):
            a, b = tree.parent(node, num_shards)
            assert not (lo <= a and b <= hi), "its parent would do"


@given(SHARDS)
def test_a_parent_is_its_two_children(num_shards):
    for lo, hi in all_nodes(0, num_shards):
        if hi - lo > 1:
            middle = tree.split(lo, hi)
            assert tree.parent((lo, middle), num_shards) == tree.parent((middle, hi), num_shards) == (lo, hi)


def test_the_root_and_strangers_have_no_parent():
    for node in [(0, 8), (2, 5), (8, 9)]:
        with pytest.raises(ValueError, match="no parent in the tree of 8 shards"):
            tree.parent(node, 8)
