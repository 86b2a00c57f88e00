import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep_proto.layout import clip_slices
from lockstep_server import norms, penalties

BLOCK = norms.BLOCK
SIZE = 3 * BLOCK + 1234
VECTOR = np.random.default_rng(4).normal(size=SIZE).astype(np.float32)


def chunks(blocks_of_chunk):
    size = blocks_of_chunk * BLOCK
    return [(lo, min(lo + size, SIZE)) for lo in range(0, SIZE, size)]


def square_sums(values):
    squares = norms.BlockSquares(values.size)
    for lo in range(0, values.size, BLOCK):
        squares.put(lo, values[lo : lo + BLOCK])
    return squares.sums


def test_the_norm_is_close_to_the_exact_one():
    exact = math.sqrt(math.fsum(float(v) ** 2 for v in VECTOR.tolist()))
    assert norms.norm(square_sums(VECTOR)) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("elements", [BLOCK, 3 * BLOCK, 40_000, 100_000, SIZE])
def test_the_cut_of_a_vector_and_the_order_of_its_pieces_do_not_show_in_the_bits(elements):
    cuts = sorted({*range(0, SIZE, elements), *range(0, SIZE, BLOCK), SIZE})
    squares = norms.BlockSquares(SIZE)
    for _ in range(2):  # with what is left of the first time
        squares.clear()
        whole = {}
        for lo, hi in np.random.default_rng(elements).permutation(list(itertools.pairwise(cuts))):
            of_block = squares.put(lo, VECTOR[lo:hi])
            assert np.array_equal(squares.last, np.square(VECTOR[lo:hi], dtype=np.float64))
            if of_block is not None:
                whole[lo // BLOCK] = of_block.copy()
        assert squares.sums == square_sums(VECTOR)
        assert [whole[block].size for block in sorted(whole)] == [BLOCK, BLOCK, BLOCK, SIZE - 3 * BLOCK]
        assert all(float(np.add.reduce(whole[block])) == squares.sums[block] for block in whole)


def test_what_was_put_in_before_it_was_cleared_counts_no_more():
    squares = norms.BlockSquares(SIZE)
    squares.put(0, VECTOR[:1000])
    squares.clear()
    assert squares.put(1000, VECTOR[1000:BLOCK]) is None
    assert squares.put(0, VECTOR[:1000]) is not None


def test_a_block_is_a_plain_float64_sum():
    block = VECTOR[BLOCK : 2 * BLOCK].astype(np.float64)
    assert square_sums(VECTOR)[1] == float(np.add.reduce(block * block))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(value):
    vector = VECTOR.copy()
    vector[2 * BLOCK + 5] = value
    assert np.isfinite(square_sums(vector)).tolist() == [True, True, False, True]


@settings(max_examples=30)
@given(st.lists(st.integers(0, SIZE), min_size=2, max_size=6, unique=True).map(sorted))
def test_penalties_are_those_of_the_weights_block_by_block(cuts):
    weights = [slice(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    values, gradient = [], np.zeros(SIZE, np.float32)
    for lo, hi in chunks(1):
        inside = clip_slices(weights, lo, hi)
        values.append(penalties.block_value(VECTOR[lo:hi], inside, 0.3, 0.7))
        penalties.add_gradient(gradient[lo:hi], VECTOR[lo:hi], inside, 0.3, 0.7)
    mask = np.zeros(SIZE, bool)
    for part in weights:
        mask[part] = True
    w = VECTOR.astype(np.float64)[mask]
    assert sum(values) == pytest.approx(0.3 * np.abs(w).sum() + 0.35 * (w * w).sum())
    np.testing.assert_allclose(gradient[mask], 0.3 * np.sign(w) + 0.7 * w, rtol=1e-5)
    assert not gradient[~mask].any(), "biases are free"
