"""The job of the tests with real processes, and its right result."""

import functools
from dataclasses import replace

from tests import plain_loop
from tests.faults.data import VALIDATION, X, Y
from tests.plain_loop import Settings
from tests.test_same_bits import spec_of

SETTINGS = Settings(sizes=(20, 600, 500, 5), batch=128, epochs=5, momentum=0.9, dropout=0.1)  # two chunks, 40 steps
CHECKPOINT_STEPS = 5
MAX_WORKERS = 2


def spec(**changes):
    """A job's spec; `changes` are settings of the plain loop."""
    made = spec_of(replace(SETTINGS, **changes))
    made.checkpoints.every_steps = CHECKPOINT_STEPS
    made.workers.max = MAX_WORKERS
    return made


@functools.cache
def expected(**changes):
    """The digest and the losses that no fault may change."""
    settings = replace(SETTINGS, **changes)
    result = plain_loop.train(settings, X, Y, validation=VALIDATION)
    return result.digest(settings), result.losses, result.validation
