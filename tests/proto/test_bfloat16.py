"""Rounding to bfloat16, against fractions: the nearest of two neighbours, the even one of two that are as near."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep_proto import bfloat16
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import job_pb2
from tests import plain_loop

ALL = np.arange(2**16, dtype=np.uint16)
INFINITE = 0x7F80


def value_of(code):
    """The float of a bfloat16's 16 bits."""
    return struct.unpack("<f", struct.pack("<I", code << 16))[0]


def exact(code):
    """The same as a fraction; the infinite one counts as what would be next after the largest."""
    return Fraction(2) ** 128 if code == INFINITE else Fraction(value_of(code))


def slowly_rounded(x):
    """The bfloat16 that a float32 rounds to, by its definition."""
    if math.isnan(x):
        return math.nan
    if math.isinf(x):
        return x
    magnitude = Fraction(abs(x))
    low, high = 0, INFINITE  # the largest code that is not above, by halving
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if exact(middle) <= magnitude else (low, middle)
    below, above = magnitude - exact(low), exact(high) - magnitude
    code = low if below < above or (below == above and low % 2 == 0) else high
    return math.copysign(value_of(code), x)


def rounded(values):
    values = np.array(values, np.float32)
    bfloat16.round_in_place(values)
    return values


def all_values():
    values = np.empty(2**16, np.float32)
    bfloat16.unpack(ALL, values)
    return values


def same(a, b):
    """Equal values, of equal sign where they are zero; NaN equals NaN."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def test_all_values_are_their_upper_halves_and_stay():
    values = all_values()
    np.testing.assert_array_equal(values, np.array([value_of(int(code)) for code in ALL], np.float32))
    assert same(rounded(values), values)


def test_packing_and_unpacking_give_every_value_back():
    values = all_values()
    assert (bfloat16.pack(values) == ALL).all()
    assert bfloat16.pack(values).nbytes == values.nbytes // 2


def test_halfway_cases_go_to_the_even_one_and_their_neighbours_to_the_nearest():
    codes = np.r_[0:0x0180, 0x3F00:0x4100, 0x7E80:INFINITE]  # from 0 past the subnormal ones, about 1, to the largest
    halfway = np.concatenate([codes, codes + 0x8000]).astype(np.uint32) << 16 | 0x8000
    for offset in (-1, 0, 1):
        values = (halfway + np.uint32(offset % 2**32)).view(np.float32)
        expected = [slowly_rounded(float(x)) for x in values]
        assert same(rounded(values), expected), offset
        assert same(plain_loop.to_bfloat16(values), expected), offset


@given(st.integers(0, 2**32 - 1))
def test_any_bits(bits):
    x = struct.unpack("<f", struct.pack("<I", bits))[0]
    assert same(rounded([x]), [slowly_rounded(x)])
    assert same(plain_loop.to_bfloat16(np.array([x], np.float32)), [slowly_rounded(x)])


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000])
def test_nan_stays_nan_on_its_way_too(bits):
    values = np.array([0x3F800000, bits], np.uint32).view(np.float32)
    bfloat16.round_in_place(values)
    out = np.empty(2, np.float32)
    bfloat16.unpack(bfloat16.pack(values), out)
    assert out[0] == 1
    assert np.isnan(out[1])


def test_what_is_too_large_becomes_infinite():
    largest = value_of(INFINITE - 1)
    assert rounded([largest, -largest, 3.4e38, -3.4e38]).tolist() == [largest, -largest, math.inf, -math.inf]


@pytest.mark.parametrize("size", [0, 1, bfloat16.BLOCK - 1, bfloat16.BLOCK, bfloat16.BLOCK + 1, 2 * bfloat16.BLOCK + 5])
def test_vectors_are_rounded_whole_in_their_place(size):
    values = np.random.default_rng(size).normal(size=size + 2).astype(np.float32)
    values[size // 2 + 1] = np.nan
    before = values.copy()
    part = values[1 : size + 1]
    bfloat16.round_in_place(part)
    assert same(part, plain_loop.to_bfloat16(before[1 : size + 1]))
    assert same(values[[0, -1]], before[[0, -1]])


@pytest.mark.parametrize("size", [0, 1, bfloat16.BLOCK + 1, 2 * bfloat16.BLOCK + 5])
def test_rounding_and_packing_at_once_gives_the_same(size):
    bits = np.random.default_rng(size).integers(0, 2**32, size, np.uint32)
    values = bits.view(np.float32)
    values[np.isnan(values)] = np.inf
    packed = np.empty(size, bfloat16.DTYPE)
    bfloat16.pack_rounded(values, packed)
    assert (packed == bfloat16.pack(plain_loop.to_bfloat16(values))).all()


@pytest.mark.parametrize(("wire_dtype", "travels"), [(None, False), ("float32", False), ("bfloat16", True)])
def test_a_job_says_whether_it_wants_it(wire_dtype, travels):
    network = {"inputs": 2, "layers": [{"units": 1}]}
    fields = {"network": network, "loss": "norm", "batch_size": "full", "epochs": 1, "wire_dtype": wire_dtype}
    assert bfloat16.travels(read_spec(fields)) == travels
    assert not bfloat16.travels(job_pb2.JobSpec())
