"""The job of the tests with real processes: its data, which every process makes for itself, and its right result."""

import functools
from dataclasses import replace

import numpy as np

from tests import plain_loop
from tests.one_thread import shards_of
from tests.plain_loop import Settings
from tests.test_same_bits import spec_of

RNG = np.random.default_rng(17)
X = RNG.normal(size=(901, 20)).astype(np.float32)
Y = RNG.integers(0, 5, 901)
VALIDATION = X[:50], Y[:50]
SETTINGS = Settings(sizes=(20, 600, 500, 5), batch=128, epochs=5, momentum=0.9, dropout=0.1)  # two chunks
CHECKPOINT_STEPS = 5


def spec(**changes):
    """A job's spec; `changes` are settings of the plain loop."""
    made = spec_of(replace(SETTINGS, **changes))
    made.checkpoints.every_steps = CHECKPOINT_STEPS
    return made


@functools.cache
def expected(**changes):
    """The digest and the losses that no fault may change."""
    settings = replace(SETTINGS, **changes)
    result = plain_loop.train(settings, X, Y, validation=VALIDATION)
    return result.digest(settings), result.losses, result.validation


def training(num_shards):
    return shards_of(num_shards, X, Y)


def validation(num_shards):
    return shards_of(num_shards, *VALIDATION)
