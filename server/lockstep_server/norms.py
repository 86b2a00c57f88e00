"""Norms: float64 sums over blocks of 65,536 elements of the flat vector, added in order.

The blocks begin at multiples of BLOCK from the start of the flat vector and are a constant of the mathematics. Chunks
of the transport are whole numbers of blocks (the last one excepted), so a chunk gives the sums of its own blocks, and
the sums of all chunks, in order, are those of the vector: the cut into chunks does not show in the bits.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLOCK = 65_536


def square_sum(block: Array, scratch: npt.NDArray[np.float64]) -> float:
    """Return Σ x² of one block. `scratch` has at least its size."""
    squares = scratch[: block.size]
    np.square(block, dtype=np.float64, out=squares)
    return float(np.add.reduce(squares))


def total(blocks: Iterable[float]) -> float:
    """Return the sum of block sums, added in order."""
    result = 0.0
    for block in blocks:
        result += block
    return result


def norm(blocks: Iterable[float]) -> float:
    """Return the Euclidean norm from the squares of all blocks, in order."""
    return math.sqrt(total(blocks))
