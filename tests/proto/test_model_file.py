import json

import numpy as np
from safetensors.numpy import load, save

from lockstep_proto.model_file import sorted_header

TENSORS = {"W2": np.arange(6, dtype=np.float32).reshape(2, 3), "b2": np.ones(3, np.float32)}


def content(metadata):
    return b"".join(sorted_header(save(TENSORS, metadata)))


def test_equal_tensors_and_metadata_make_equal_files():
    made = {content({f"key{i}": "x" * i for i in order}) for order in (range(20), range(19, -1, -1))}
    assert len(made) == 1


def test_the_file_holds_what_it_did():
    made = content({"b": "1", "a": "2"})
    for name, values in load(made).items():
        np.testing.assert_array_equal(values, TENSORS[name])
    size = int.from_bytes(made[:8], "little")
    assert size % 8 == 0
    assert json.loads(made[8 : 8 + size])["__metadata__"] == {"a": "2", "b": "1"}
