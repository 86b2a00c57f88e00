import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep_proto import tree
from lockstep_proto.codec import Sums
from lockstep_server.reduction import DuplicateValueError, NotANodeError, Reduction

RNG = np.random.default_rng(7)


def leaf(shard):
    rng = np.random.default_rng(shard)
    return Sums(float(shard + 1), rng.normal(), rng.normal()), rng.normal(size=5).astype(np.float32)


def plain(lo, hi):
    """The value of a node by plain recursion."""
    if hi - lo == 1:
        return leaf(lo)
    middle = tree.split(lo, hi)
    (s, g), (t, h) = plain(lo, middle), plain(middle, hi)
    return Sums(s.weight + t.weight, s.loss + t.loss, s.metric + t.metric), g + h


def nodes(lo, hi):
    yield (lo, hi)
    if hi - lo > 1:
        middle = tree.split(lo, hi)
        yield from nodes(lo, middle)
        yield from nodes(middle, hi)


@given(st.integers(1, 20), st.randoms())
def test_the_root_has_the_same_bits_for_any_nodes_in_any_order(num_shards, random):
    messages = list(nodes(0, num_shards))
    random.shuffle(messages)  # leaves and sums of leaves, overlapping, as helpers and returning workers send them
    reduction = Reduction(num_shards, 1)
    roots = []
    for node in messages:
        try:
            roots.append(reduction.put(node, 0, *plain(*node)))
        except DuplicateValueError:
            continue
    [root] = [root for root in roots if root is not None]
    sums, gradient = plain(0, num_shards)
    assert root.sums == sums
    assert root.gradient.tobytes() == gradient.tobytes()
    assert reduction.complete


def test_messages_are_not_written_to():
    reduction = Reduction(2, 1)
    left, right = leaf(0), leaf(1)
    before = left[1].copy(), right[1].copy()
    reduction.put((0, 1), 0, *left)
    reduction.put((1, 2), 0, *right)
    np.testing.assert_array_equal(left[1], before[0])
    np.testing.assert_array_equal(right[1], before[1])


def test_what_arrives_again_or_below_is_a_duplicate():
    reduction = Reduction(8, 1)
    reduction.put((0, 4), 0, *plain(0, 4))
    for node in [(0, 4), (2, 4), (3, 4)]:
        with pytest.raises(DuplicateValueError):
            reduction.put(node, 0, *plain(*node))


def test_ranges_outside_the_tree_are_refused():
    with pytest.raises(NotANodeError, match=r"\[1, 3\) is no node of the tree of 8 shards"):
        Reduction(8, 1).put((1, 3), 0, *leaf(0))


def test_missing_names_the_shards_that_some_chunk_lacks():
    reduction = Reduction(8, 2)
    reduction.put((0, 4), 0, *plain(0, 4))
    reduction.put((0, 2), 1, *plain(0, 2))
    assert reduction.missing(0, 4) == [(2, 4)]
    assert reduction.missing(0, 8) == [(2, 8)]
    reduction.put((3, 4), 1, *plain(3, 4))
    assert reduction.missing(0, 4) == [(2, 3)]


def test_a_second_round_starts_empty_and_reuses_buffers():
    reduction = Reduction(4, 1)
    for _ in range(2):
        for shard in range(4):
            root = reduction.put((shard, shard + 1), 0, *leaf(shard))
        assert root is not None
        assert root.gradient.tobytes() == plain(0, 4)[1].tobytes()
        reduction.release(root)
        reduction.reset()
        assert not reduction.complete


@pytest.mark.parametrize("order", [[(0, 2)], [(0, 1), (1, 2)], [(1, 2), (0, 1)], [(0, 1), (0, 2)]])
def test_a_gradient_is_kept_no_longer_than_it_waits(order):
    reduction = Reduction(2, 2)
    messages = []

    def put(node):
        sums, gradient = plain(*node)
        messages.append(weakref.ref(gradient))
        return reduction.put(node, 0, sums, gradient)

    waiting = [put(node) for node in order[:-1]]
    assert waiting == [None] * len(waiting)
    assert all(message() is not None for message in messages)
    reduction.release(put(order[-1]))
    assert all(message() is None for message in messages)
    assert not reduction.complete
    for node in nodes(0, 2):
        with pytest.raises(DuplicateValueError):
            put(node)
    reduction.put((0, 1), 1, *leaf(0))
    assert reduction.missing(0, 2) == [(1, 2)]
    reduction.put((1, 2), 1, *leaf(1))
    assert reduction.missing(0, 2) == []
    assert reduction.complete


def test_values_that_are_not_finite_are_summed_without_a_word():
    reduction = Reduction(2, 1)
    infinite = np.array([np.inf], np.float32)
    reduction.put((0, 1), 0, Sums(1.0, 0.0, 0.0), infinite)
    root = reduction.put((1, 2), 0, Sums(1.0, 0.0, 0.0), -infinite)
    assert np.isnan(root.gradient).all()
