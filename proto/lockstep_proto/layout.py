"""The flat vector: W^2, b^2, W^3, b^3, ... one after the other, row by row.

The digest of a model is the SHA-256 of one line of ASCII that describes the layout,

    lockstep.v1 float32 64 128 10\\n

(the type and n_1 to n_L), followed by the flat vector in little-endian order.
"""

import hashlib
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]  # of float32 or float64


@dataclass(frozen=True)
class Layout:
    """Where W^l and b^l lie in the flat vector of a network with n_1 to n_L = `sizes` units."""

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def from_spec(cls, spec: job_pb2.JobSpec) -> "Layout":
        """Return the layout of the job's network."""
        dtype = np.dtype(np.float64 if spec.dtype == job_pb2.DTYPE_FLOAT64 else np.float32)
        return cls((spec.network.inputs, *(layer.units for layer in spec.network.layers)), dtype)

    @property
    def num_layers(self) -> int:
        """How many layers have parameters: L − 1."""
        return len(self.sizes) - 1

    @cached_property
    def layer_slices(self) -> list[slice]:
        """The part of W^l and b^l together, for l = 2..L."""
        ends = [0]
        for n_in, n_out in itertools.pairwise(self.sizes):
            ends.append(ends[-1] + n_in * n_out + n_out)
        return [slice(lo, hi) for lo, hi in itertools.pairwise(ends)]

    @cached_property
    def weight_slices(self) -> list[slice]:
        """The part of W^l alone, for l = 2..L."""
        return [slice(part.start, part.stop - n) for part, n in zip(self.layer_slices, self.sizes[1:], strict=True)]

    @property
    def num_parameters(self) -> int:
        """Elements of the flat vector: Σ_l n_{l-1} n_l + n_l."""
        return int(self.layer_slices[-1].stop)

    def views(self, flat: Array) -> list[tuple[Array, Array]]:
        """Return (W^l, b^l) of shapes (n_{l-1}, n_l) and (n_l,) as views into `flat`, for l = 2..L."""
        if flat.shape != (self.num_parameters,):
            raise ValueError(f"the flat vector must have shape ({self.num_parameters},), got {flat.shape}")
        pairs = []
        for layer, weight, n_in, n_out in zip(
            self.layer_slices, self.weight_slices, self.sizes, self.sizes[1:], strict=False
        ):
            pairs.append((flat[weight].reshape(n_in, n_out), flat[weight.stop : layer.stop]))
        return pairs

    def layer_of(self, element: int) -> int:
        """Return the number l (2..L) of the layer that an element of the flat vector belongs to."""
        return 2 + next(i for i, part in enumerate(self.layer_slices) if element < part.stop)


def clip_slices(slices: list[slice], lo: int, hi: int) -> list[slice]:
    """Return the parts of `slices` inside [lo, hi), counted from lo."""
    parts = [(max(part.start, lo) - lo, min(part.stop, hi) - lo) for part in slices]
    return [slice(start, stop) for start, stop in parts if start < stop]


@dataclass(frozen=True)
class Chunking:
    """The flat vector cut into chunks of `chunk_elements`, the last one shorter."""

    num_parameters: int
    chunk_elements: int

    @property
    def num_chunks(self) -> int:
        """How many chunks there are."""
        return math.ceil(self.num_parameters / self.chunk_elements)

    def range(self, index: int) -> tuple[int, int]:
        """Return the elements [lo, hi) of one chunk."""
        lo = index * self.chunk_elements
        return lo, min(lo + self.chunk_elements, self.num_parameters)


def digest(layout: Layout, flat: Array) -> str:
    """Return the SHA-256, in hexadecimal, of a model: of its layout and its parameters."""
    line = " ".join(["lockstep.v1", layout.dtype.name, *map(str, layout.sizes)]) + "\n"
    sha = hashlib.sha256(line.encode("ascii"))
    sha.update(np.ascontiguousarray(flat, dtype=layout.dtype.newbyteorder("<")).data)
    return sha.hexdigest()
