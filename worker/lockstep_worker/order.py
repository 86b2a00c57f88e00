"""Random numbers of a worker: the order of a shard's rows, and dropout.

Every stream is Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), keyed by its use, the
seed, and the place in the computation; never by a worker, a process or a clock.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

ORDER_USE = 2
DROPOUT_USE = 3


def stream(*key: int) -> np.random.Generator:
    """Return the stream of a key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def shard_order(seed: int, epoch: int, shard: int, num_rows: int) -> npt.NDArray[Any]:
    """Return the order in which one epoch takes the rows of one shard: a permutation of 0..num_rows−1."""
    return stream(ORDER_USE, seed, epoch, shard).permutation(num_rows)


def dropout_stream(seed: int, step: int, shard: int, layer: int) -> np.random.Generator:
    """Return the stream that one step takes the dropout of one shard and layer l = 2..L from, block after block."""
    return stream(DROPOUT_USE, seed, step, shard, layer)
