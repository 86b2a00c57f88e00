"""The data of the tests with real processes, which every worker makes for itself; so this module is quick to load."""

import numpy as np

from tests.shards import shards_of

_RNG = np.random.default_rng(17)
X = _RNG.normal(size=(901, 20)).astype(np.float32)
Y = _RNG.integers(0, 5, 901)
VALIDATION = X[:50], Y[:50]


def training(num_shards):
    return shards_of(num_shards, X, Y)


def validation(num_shards):
    return shards_of(num_shards, *VALIDATION)
