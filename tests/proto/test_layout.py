import hashlib
import struct

import numpy as np
import pytest

from lockstep_proto.layout import Chunking, Layout, clip_slices, digest

F32 = np.dtype(np.float32)


def test_layers_lie_one_after_the_other_weights_before_biases():
    layout = Layout((3, 2, 4), F32)
    assert layout.num_parameters == 3 * 2 + 2 + 2 * 4 + 4
    flat = np.arange(layout.num_parameters, dtype=np.float32)
    (w2, b2), (w3, b3) = layout.views(flat)
    np.testing.assert_array_equal(w2, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(b2, [6, 7])
    np.testing.assert_array_equal(w3, [[8, 9, 10, 11], [12, 13, 14, 15]])
    np.testing.assert_array_equal(b3, [16, 17, 18, 19])
    w3[1, 3] = -1
    assert flat[15] == -1, "views, not copies"


def test_an_element_knows_its_layer():
    layout = Layout((3, 2, 4), F32)
    assert [layout.layer_of(i) for i in (0, 7, 8, 19)] == [2, 2, 3, 3]


def test_views_of_a_vector_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(20,\), got \(19,\)"):
        Layout((3, 2, 4), F32).views(np.zeros(19, np.float32))


def test_slices_are_clipped_and_counted_from_the_start():
    assert clip_slices([slice(0, 6), slice(8, 16)], 4, 10) == [slice(0, 2), slice(4, 6)]
    assert clip_slices([slice(0, 6)], 6, 10) == []


def test_chunks_cover_the_vector():
    chunking = Chunking(10, 4)
    assert [chunking.range(i) for i in range(chunking.num_chunks)] == [(0, 4), (4, 8), (8, 10)]


def test_the_digest_is_the_sha256_of_the_line_and_the_little_endian_values():
    values = [1.5, -2.0, 0.25]
    expected = hashlib.sha256(b"lockstep.v1 float32 2 1\n" + struct.pack("<3f", *values)).hexdigest()
    layout = Layout((2, 1), F32)
    assert digest(layout, np.array(values, np.float32)) == expected
    assert digest(layout, np.array(values, ">f4")) == expected, "whatever the order in memory"
    assert digest(layout, np.array([1.5, -2.0, 0.5], np.float32)) != expected
