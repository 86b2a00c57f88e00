"""How fast a worker is: whether it is late, has fewer shards for it, and when it is tried again.

A turn is one shard on each CPU of a worker, side by side. What is usual is the lower median, over the workers, of the
seconds that their turns took lately: so the slower one of two is told from the other.
"""

import math
from collections import deque
from collections.abc import Iterable

LATE = 3.0  # a worker that takes so many times the usual is late: beyond what a busy neighbour does to it
LATE_STEPS = 3  # running, after which a worker has fewer shards, or its share again: one is chance
LATE_STEPS_S = 0.04  # that they must span, since what keeps a process from a core now and then lasts many small steps
MIN_LATE_S = 0.02  # what a process now and then stands still; a shorter delay is not worth a second computation
RETRY_S = 5.0  # until a worker without shards is tried again, or as many of its turns; doubled with each failed trial
LONGEST_RETRY_S = 60.0
REMEMBERED = 5  # turns whose median counts


class Pace:
    """The pace of one worker in one kind of round. `turn_s` is what its turns took lately, in seconds."""

    def __init__(self) -> None:
        self.turn_s: float | None = None  # before the first
        self._turns_s: deque[float] = deque(maxlen=REMEMBERED)
        self._num_changed = 0  # steps running in which it was late, or in time if it counts as slow
        self._changed_s = 0.0  # when the first of them ended
        self.slow = False  # has shards by its own speed, not by its CPUs
        self._retry_s = math.inf
        self._wait_s = RETRY_S

    def took(self, turn_s: float, now: float, *, late: bool) -> bool:
        """Take in how long a turn took. Return whether the worker's share of the shards changes for it."""
        self._remember(turn_s)
        if late == self.slow:
            self._num_changed = 0
            return self.slow and self._failed_trial(now)
        self._num_changed += 1
        if self._num_changed == 1:
            self._changed_s = now
        if self._num_changed < LATE_STEPS or now - self._changed_s < LATE_STEPS_S:
            return False
        self.slow, self._num_changed = late, 0
        self._retry_s, self._wait_s = math.inf, RETRY_S
        if late:
            self._turns_s.clear()  # how it was before says nothing any more
            self._remember(turn_s)
        return True

    def _remember(self, turn_s: float) -> None:
        self._turns_s.append(turn_s)
        self.turn_s = sorted(self._turns_s)[len(self._turns_s) // 2]

    def _failed_trial(self, now: float) -> bool:
        on_trial = self._retry_s < math.inf
        if on_trial:
            self._put_off(now)
        return on_trial

    def rests(self, now: float) -> bool:
        """Whether a slow worker that has no shards is still to be left alone, and not tried again with one."""
        if self._retry_s == math.inf:
            self._put_off(now)
        return now < self._retry_s

    def _put_off(self, now: float) -> None:
        """Let the next trial be later than the last: a trial costs a step about one turn of those that are fast."""
        self._retry_s = now + self._wait_s * max(1.0, self.turn_s or 0.0)
        self._wait_s = min(2 * self._wait_s, LONGEST_RETRY_S)


def usual_turn_s(paces: Iterable[Pace]) -> float | None:
    """Return the seconds that a turn usually takes; None when none has been measured."""
    known = sorted([pace.turn_s for pace in paces if pace.turn_s is not None])
    return known[(len(known) - 1) // 2] if known else None


def turns(num_shards: int, num_cpus: int) -> int:
    """Return how many turns a worker needs for its shards."""
    return -(-num_shards // num_cpus)
