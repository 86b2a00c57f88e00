import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from lockstep_proto.model_file import encode

TENSORS = {"b2": np.ones(3, np.float32), "W2": np.arange(6, dtype=np.float32).reshape(2, 3), "W10": np.zeros((1, 1))}


def content(tensors, metadata):
    return b"".join(encode(tensors, metadata))


def split(made):
    end = 8 + int.from_bytes(made[:8], "little")
    return json.loads(made[8:end]), made[end:]


def same(a, b):
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert (values.dtype, values.shape, values.tobytes()) == (b[name].dtype, b[name].shape, b[name].tobytes())


def test_equal_tensors_and_metadata_make_equal_files():
    orders = (range(20), range(19, -1, -1))
    made = {content(dict(reversed(TENSORS.items())), {f"key{i}": "x" * i for i in order}) for order in orders}
    assert made == {content(TENSORS, {f"key{i}": "x" * i for i in range(20)})}


def test_the_library_reads_what_is_written():
    made = content(TENSORS, {"b": "1", "a": "ä"})
    same(load(made), TENSORS)
    size = int.from_bytes(made[:8], "little")
    assert size % 8 == 0
    assert json.loads(made[8 : 8 + size])["__metadata__"] == {"a": "ä", "b": "1"}


def test_the_tensors_lie_as_the_library_lays_them():
    tensors = {name: values.astype(np.float32) for name, values in TENSORS.items()}
    assert split(content(tensors, {"a": "1"})) == split(save(tensors, {"a": "1"}))


@pytest.mark.parametrize("make", [np.asfortranarray, lambda values: np.repeat(values, 2, axis=1)[:, ::2]])
def test_arrays_that_are_not_contiguous_are_saved_as_they_read(make):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    scattered = make(values)
    assert not scattered.flags.c_contiguous
    same(load(content({"W2": scattered}, {})), {"W2": values})


def test_contiguous_arrays_are_not_copied():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    (_, part) = encode({"W2": values}, {})
    values[0, 0] = 7.0
    assert part[:4] == np.float32(7.0).tobytes()
