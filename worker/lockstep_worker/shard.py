"""The rows of one shard, as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """Rows of one shard, C-contiguous.

    x has shape (n, n_1) and the job's dtype; y holds class labels, shape (n,) of int64, or values, shape (n, n_L) of
    the job's dtype; weight, shape (n,) of float64, or None where every row weighs 1.
    """

    x: Array
    y: Array
    weight: npt.NDArray[np.float64] | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the shard."""
        return len(self.x)
