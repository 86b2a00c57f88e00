"""The safetensors files of models and checkpoints, laid out by one function, so that equal models make equal files.

A file is the length of its header (8 bytes, little-endian), the header (JSON: type, shape and place of each tensor, and
the metadata), and the tensors one after the other. The library would copy all of it to make it.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_TYPES = {"<f4": "F32", "<f8": "F64"}


def encode(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Return a file in parts: the header, then the memory of the tensors in order of their names, uncopied.

    An array that is not C-contiguous is copied: its memory as it lies would be the tensor scrambled.
    """
    parts = [np.ascontiguousarray(tensors[name]).data.cast("B") for name in sorted(tensors)]
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, part in zip(sorted(tensors), parts, strict=True):
        begin, end = end, end + part.nbytes
        values = tensors[name]
        header[name] = {"dtype": _TYPES[values.dtype.str], "shape": values.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return [len(text).to_bytes(8, "little") + text, *parts]
