"""The penalties on the weights: Q gets l1 Σ|w| + ½ l2 Σ w² over all W^l; biases are free.

L2 is weight decay (Krogh and Hertz, "A simple weight decay can improve generalization", 1992); L1 is the lasso
(Tibshirani, 1996), with the subgradient 0 at w = 0.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def add_gradient(g: Array, w: Array, weights: list[slice], l1: float, l2: float) -> None:
    """Add l1 sign(w) + l2 w to the gradient of one block, in place; first L1, then L2. `weights`: its parts in W^l."""
    for part in weights:
        if l1:
            g[part] += l1 * np.sign(w[part])
        if l2:
            g[part] += l2 * w[part]


def block_value(w: Array, weights: list[slice], l1: float, l2: float) -> float:
    """Return the penalty of one block of the norms, of which `weights` are the parts in W^l.

    It is l1 Σ|w| + ½ l2 Σ w², both sums in float64, part by part in the order of the flat vector.
    """
    magnitudes = squares = 0.0
    for part in weights:
        magnitudes += float(np.add.reduce(np.abs(w[part], dtype=np.float64))) if l1 else 0.0
        squares += float(np.add.reduce(np.square(w[part], dtype=np.float64))) if l2 else 0.0
    return l1 * magnitudes + 0.5 * l2 * squares
