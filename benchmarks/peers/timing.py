"""The milliseconds of something that is done again and again."""

import time
from collections.abc import Callable

SECONDS = 3.0  # that one measurement takes, about
WARMUP_STEPS = 3


def num_steps(step: Callable[[], object]) -> int:
    """Warm up, and return how many steps are to be measured."""
    for _ in range(WARMUP_STEPS):
        step()
    begun = time.perf_counter()
    step()
    return max(int(SECONDS / (time.perf_counter() - begun)), 3)


def ms_a_step(step: Callable[[], object], num: int) -> float:
    """Return the milliseconds of one of `num` steps."""
    begun = time.perf_counter()
    for _ in range(num):
        step()
    return 1000 * (time.perf_counter() - begun) / num
