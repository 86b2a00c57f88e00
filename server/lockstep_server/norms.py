"""Norms: float64 sums over blocks of 65,536 elements of the flat vector, added in order.

The blocks begin at multiples of BLOCK from the start of the flat vector and are a constant of the mathematics. The
transport's chunks may end anywhere: what of a chunk lies in a block is a piece of it, and the block is summed when all
its pieces are there. So the cut into chunks does not show in the bits.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLOCK = 65_536


class BlockSquares:
    """Σ x² of every block of a vector that comes piece by piece, in any order.

    It keeps the squares of blocks that are not whole: one or two, where pieces come nearly in order.
    """

    def __init__(self, num_elements: int) -> None:
        self._sizes = [min(BLOCK, num_elements - lo) for lo in range(0, num_elements, BLOCK)]
        self._spare: list[npt.NDArray[np.float64]] = []
        self._open: dict[int, npt.NDArray[np.float64]] = {}  # blocks of which some pieces are there: their squares
        self.last = np.empty(0)  # the squares of the piece that was put in last
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self._spare += self._open.values()
        self._open.clear()
        self._num_missing = self._sizes.copy()  # elements
        self.sums = [0.0] * len(self._sizes)  # of the blocks that are whole

    def put(self, start: int, piece: Array) -> npt.NDArray[np.float64] | None:
        """Take in what follows on some element of the vector, all in one block.

        Return the squares of the block if it is whole now; they are good until this is called again.
        """
        block, begin = divmod(start, BLOCK)
        size = self._sizes[block]
        squares = self._open.pop(block, None)
        if squares is None:
            squares = self._spare.pop() if self._spare else np.empty(min(BLOCK, sum(self._sizes)))
        self.last = squares[begin : begin + piece.size]
        np.square(piece, dtype=np.float64, out=self.last)
        self._num_missing[block] -= piece.size
        if self._num_missing[block]:
            self._open[block] = squares
            return None
        self._spare.append(squares)
        self.sums[block] = float(np.add.reduce(squares[:size]))
        return squares[:size]


def total(blocks: Iterable[float]) -> float:
    """Return the sum of block sums, added in order."""
    result = 0.0
    for block in blocks:
        result += block
    return result


def norm(blocks: Iterable[float]) -> float:
    """Return the Euclidean norm from the squares of all blocks, in order."""
    return math.sqrt(total(blocks))
