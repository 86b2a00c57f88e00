"""The floor does the arithmetic of a step, all of it."""

import numpy as np
import pytest

from benchmarks.floor import Gradient
from tests import plain_loop
from tests.plain_loop import Settings

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("sizes", [(6, 3), (6, 9, 4), (6, 9, 8, 5)])
def test_it_computes_the_gradient_of_the_plain_loop(sizes: tuple[int, ...]) -> None:
    x = RNG.normal(size=(32, sizes[0])).astype(np.float32)
    labels = RNG.integers(0, sizes[-1], 32)
    settings = Settings(sizes=sizes)
    flat = RNG.normal(size=plain_loop.initial(settings).size).astype(np.float32)
    layers = plain_loop.layers_of(settings, flat)
    expected, _ = plain_loop.shard_gradient(settings, layers, x, plain_loop.one_hot(settings, labels), 0, 0, None)
    gradient = Gradient(sizes, x, labels, layers)
    for _ in range(2):  # buffers are used again
        gradient.compute()
        found = np.concatenate([part.ravel() for pair in gradient.sums for part in pair])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
