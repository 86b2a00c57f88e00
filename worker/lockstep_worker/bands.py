"""Bands of rows of W^l: what of a large layer's ΔW^l is computed as one product, and handed out under the next one.

A layer is one band, or is cut where a chunk of the flat vector can go out; its last band has b^l as well. Bands are
numbered in the order of the flat vector, in which they are computed.

A product of some rows of ΔW^l has, in nearly every shape, the bits of these rows of the whole product. As with shards
that are stacked (lockstep_worker.stacking), a comparison on random numbers decides that for each shape on this machine;
where it fails, the layer is one product, whose bands are final together.

Stacked shards of few rows each write the whole of ΔW^l once a shard, and add it: that is most of their work, and less
where it stays in cache. Their bands are made up of thin products.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from lockstep_proto.layout import Chunking, Layout
from lockstep_worker.stacking import ROWS_AT_A_TIME, draws

_LEAST_ROWS = 256  # products of fewer rows take more than 3 % longer
_MOST_BANDS = 4  # of full size in a layer: a further one would hide little more of the transport
_FEW_ROWS = 16  # of a shard; with more, thin products cost more than they save
_lock = Lock()


@dataclass(frozen=True, slots=True)
class Product:
    """A product that gives some rows of ΔW^l, and the bands that are final with it."""

    rows: slice
    bands: tuple[int, ...]


class Bands:
    """The bands of a network whose gradient goes out in chunks; without `chunking` each layer is one."""

    def __init__(self, layout: Layout, chunking: Chunking | None = None) -> None:
        self._layout = layout
        self.slices: list[slice] = []  # of the flat vector
        self._banded: list[list[Product]] = []  # by layer
        self._thin: list[list[Product]] = []
        self._whole: list[list[Product]] = []
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(layout.sizes)):
            flat, first = layout.layer_slices[layer], len(self.slices)
            cuts = [0, *(_cuts(flat.start, n_in, n_out, chunking) if chunking else ()), n_in]
            products = [Product(slice(lo, hi), (first + i,)) for i, (lo, hi) in enumerate(itertools.pairwise(cuts))]
            ends = [*(flat.start + lo * n_out for lo in cuts[:-1]), flat.stop]
            self.slices += [slice(lo, hi) for lo, hi in itertools.pairwise(ends)]
            self._banded.append(products)
            self._thin.append([part for product in self._banded[layer] for part in _thin(product)])
            self._whole.append([Product(slice(0, n_in), tuple(range(first, len(self.slices))))])

    def products(self, layer: int, num_rows: int, num_shards: int = 1) -> list[Product]:
        """Return the products that ΔW^l (0 is layer 2) of shards of so many rows is computed in, in their order."""
        found = self._thin[layer] if num_shards > 1 and num_rows <= _FEW_ROWS else self._banded[layer]
        if len(found) == 1:
            return found
        cuts = tuple(product.rows.start for product in found)
        n_in, n_out = self._layout.sizes[layer : layer + 2]
        with _lock:  # threads that need the same answer wait for it
            keeps_bits = _keep_bits(cuts, n_in, n_out, self._layout.dtype, num_rows)
        return found if keeps_bits else self._whole[layer]


def _cuts(start: int, n_in: int, n_out: int, chunking: Chunking) -> list[int]:
    """Return the rows before which W^l, which begins at `start`, is cut: where a chunk ends, or a few rows below.

    They are multiples of what kernels take at a time, so that these have no new edges. The band that is computed first
    may have half as many rows as others, so that transport begins early, and so may the last one, which it ends with.
    """
    least = max(_LEAST_ROWS, n_in // (_MOST_BANDS + 1))
    ends = [chunking.range(index)[1] - start for index in range(chunking.num_chunks)]
    rows = [-(-end // (n_out * ROWS_AT_A_TIME)) * ROWS_AT_A_TIME for end in ends]
    rows = [row for row in rows if least // 2 <= row <= n_in - least // 2]
    found = rows[-1:]
    for row in reversed(rows):
        if found[0] - row >= least and row - rows[0] >= least // 2:
            found.insert(0, row)
    if found and found[0] - rows[0] >= least // 2:
        found.insert(0, rows[0])
    return found


def _thin(product: Product) -> list[Product]:
    """Cut a product into products of few rows, of which the one computed last makes the bands final."""
    lo, hi = product.rows.start, product.rows.stop
    cuts = [lo + i * _LEAST_ROWS for i in range(max(1, (hi - lo) // _LEAST_ROWS))]
    parts = [slice(start, stop) for start, stop in itertools.pairwise([*cuts, hi])]
    return [*(Product(part, ()) for part in parts[:-1]), Product(parts[-1], product.bands)]


@lru_cache(maxsize=64)
def _keep_bits(cuts: tuple[int, ...], n_in: int, n_out: int, dtype: "np.dtype[Any]", num_rows: int) -> bool:
    """Compare ΔW^l of all rows with that of the bands that begin at `cuts`."""
    random = np.random.Generator(np.random.Philox(14))
    z = random.uniform(0.1, 1, (num_rows, n_in)).astype(dtype)
    whole, apart = np.empty((2, n_in, n_out), dtype)
    for phase in draws(num_rows * n_in * n_out):
        d = random.normal(size=(num_rows, n_out)).astype(dtype)
        d[:, phase % 3 :: 3] = -0.0  # so that the sign of a sum of zeros is compared, too
        np.matmul(z.T, d, out=whole)
        for lo, hi in zip(cuts, (*cuts[1:], n_in), strict=True):
            np.matmul(z[:, lo:hi].T, d, out=apart[lo:hi])
        if whole.tobytes() != apart.tobytes():
            return False
    return True
