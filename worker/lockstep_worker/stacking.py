"""Whether shards may be computed stacked: compared for each shape on this machine, or else not done.

A product of some rows has, in nearly every shape, the bits that the same rows have as a part of a larger product: BLAS
sums along k in an order that depends on shapes alone. Where it has other kernels for small products it need not be so.
The order does not depend on the data, so comparisons on random numbers, for which another order shows, decide a shape.
Shards whose rows are not a multiple of what kernels take at a time are never stacked: their edges, a few elements where
a difference could be missed, would come to lie elsewhere.
"""

import itertools
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MOST_ROWS = 1_024  # of a stack: what lies beyond it is efficient already
ROWS_AT_A_TIME = 16  # of every BLAS kernel, or a divisor of it; other numbers of rows have edges, which stacking moves
_DRAWS = (2, 40)  # of numbers for one product, at least and at most; in one of them an order may not show
_MULTIPLICATIONS = 10**9  # that are worth more than the least
_LENGTHS = 160  # of a vector; longer ones go through the same loops of numpy's, of 64 elements at most
_FUNCTIONS = (np.exp, np.expm1, np.log, np.log1p, np.tanh)  # all others are exact or correctly rounded
_lock = Lock()


def keeps_bits(sizes: tuple[int, ...], dtype: "np.dtype[Any]", num_shards: int, num_rows: int) -> bool:
    """Whether so many shards of `num_rows` rows each have the same bits stacked as apart, in a network of `sizes`."""
    if num_rows % ROWS_AT_A_TIME:
        return False
    with _lock:  # threads that need the same answer wait for it
        return _keeps_bits(sizes, dtype, num_shards, num_rows)


def draws(num_multiplications: int) -> range:
    """Return the numbers of the comparisons that decide about a product of so many multiplications."""
    least, most = _DRAWS
    return range(min(most, max(least, _MULTIPLICATIONS // num_multiplications)))


@lru_cache(maxsize=64)
def _keeps_bits(sizes: tuple[int, ...], dtype: "np.dtype[Any]", num_shards: int, num_rows: int) -> bool:
    layers = list(itertools.pairwise(sizes))
    rows = num_shards * num_rows
    return (
        _functions_agree(dtype)
        and _rows_agree(sizes[-1], dtype, rows, num_rows)
        and all(
            _products_agree(n_in, n_out, back, dtype, num_shards, num_rows)
            for i, (n_in, n_out) in enumerate(layers)
            for back in ((False, True) if i > 0 else (False,))
        )
    )


@lru_cache(maxsize=2)
def _functions_agree(dtype: "np.dtype[Any]") -> bool:
    """Whether the bits of an element do not depend on the length of the array and its place in it."""
    random = np.random.Generator(np.random.Philox(11))
    values = np.abs(random.normal(0, 3, 2 * _LENGTHS)).astype(dtype)
    for function in _FUNCTIONS:
        for x in (values,) if function is np.log else (values, -values / 32):
            whole = function(x)
            for n in range(1, _LENGTHS):
                if function(x[n : 2 * n]).tobytes() != whole[n : 2 * n].tobytes():
                    return False
    return True


def _rows_agree(num_units: int, dtype: "np.dtype[Any]", rows: int, num_rows: int) -> bool:
    """Compare the sums along the rows of the output, as softmax and the losses take them."""
    random = np.random.Generator(np.random.Philox(12))
    values = random.normal(size=(rows, num_units)).astype(dtype)
    parts = [np.add.reduce(values[lo : lo + num_rows], axis=1) for lo in range(0, rows, num_rows)]
    return bool(np.add.reduce(values, axis=1).tobytes() == np.concatenate(parts).tobytes())


def _products_agree(n_in: int, n_out: int, back: bool, dtype: "np.dtype[Any]", num_shards: int, num_rows: int) -> bool:
    """Compare z W, or δ Wᵀ, of all rows with that of each shard's."""
    random = np.random.Generator(np.random.Philox(13))
    rows = num_shards * num_rows
    left = random.uniform(0.1, 1, (rows, n_out if back else n_in)).astype(dtype)
    pattern = random.normal(size=65_537).astype(dtype)
    stacked = np.empty((rows, n_in if back else n_out), dtype)
    apart = np.empty_like(stacked)
    for phase in draws(rows * n_in * n_out):
        weights = np.resize(np.roll(pattern, phase), (n_in, n_out))
        right = weights.T if back else weights
        right[:, phase % 3 :: 3] = -0.0  # so that the sign of a sum of zeros is compared, too
        np.matmul(left, right, out=stacked)
        for lo in range(0, rows, num_rows):
            np.matmul(left[lo : lo + num_rows], right, out=apart[lo : lo + num_rows])
        if stacked.tobytes() != apart.tobytes():
            return False
    return True
