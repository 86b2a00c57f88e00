"""Who computes which shards of a round: all at its beginning, those of the lost again, those of the late twice."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from lockstep_proto.tree import top_nodes
from lockstep_server.assignment import Range, assign, count_by_speed, deal, ranges_of
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.pace import LATE, MIN_LATE_S, usual_turn_s
from lockstep_server.rounds import Round

STUCK = 10.0  # a worker that delivers nothing for so many times what is late already will never


class Gift(NamedTuple):
    """Shards that one worker is to compute, in addition to those it has."""

    worker: WorkerView
    ranges: list[Range]


class Handout:
    """Hands out the shards of one round after the other. `look_s` is when it next wants to look at who is late."""

    def __init__(self, crew: Crew, num_shards: int, stuck_s: float) -> None:
        self._crew = crew
        self._num_shards = num_shards
        self._stuck_s = stuck_s
        self._usual_s: float | None = None  # of a turn, in this kind of round
        self.look_s = math.inf
        self._anybody_late = False  # at the last look
        self._equals: tuple[WorkerView, ...] = ()  # the crew that last had shares by its CPUs, and these
        self._equal_shares: list[tuple[WorkerView, list[Range]]] = []
        self.num_reassigned = 0
        self.num_speculative = 0

    def begin(self, current: Round, now: float) -> list[Gift]:
        """Give out all shards of a new round."""
        for worker in self._crew.values():
            worker.rest()
        self._usual_s = usual_turn_s(worker.paces[current.evaluates] for worker in self._crew.values())
        self.look_s, self._anybody_late = math.inf, False
        return [self.give(worker, ranges, current, now) for worker, ranges in self._shares(now)]

    def give(self, worker: WorkerView, ranges: list[Range], current: Round, now: float) -> Gift:
        """Give shards to a worker."""
        if worker.num_due == 0:
            worker.begun_s = now
        worker.take(ranges)
        worker.moved_s = now
        worker.num_due += current.num_chunks * num_nodes(tuple(ranges), self._num_shards)
        if current.audited:
            for node in (node for lo, hi in ranges for node in top_nodes(lo, hi, self._num_shards)):
                current.witnesses.given(worker.worker_id, node, current.num_chunks)
        self._expect(worker)
        return Gift(worker, ranges)

    def arrived(self, worker: WorkerView, now: float) -> bool:
        """Take note of a chunk of a worker's shards. Return whether that was the last one."""
        worker.moved_s = now
        worker.num_due = max(worker.num_due - 1, 0)
        if worker.num_due:
            return False
        worker.late_s = math.inf
        if worker.took_s is None and worker.ranges:
            worker.took_s = now - worker.begun_s
            if self._usual_s is None:  # the first of the first round
                self._usual_s = worker.took_s / worker.num_turns
                for other in self._crew.values():
                    self._expect(other)
        return True

    def lost(self, ranges: Iterable[Range], current: Round, now: float) -> list[Gift]:
        """Give what a lost worker owes, and nobody else computes, to others; without any it is orphaned."""
        missing = self._uncovered(current.missing(ranges), self._crew.values())
        workers = self._crew.idle_first()
        if not workers:
            current.orphans += missing
            return []
        self.num_reassigned += sum(hi - lo for lo, hi in missing)
        return self._deal(missing, workers, current, now)

    def adopt(self, worker: WorkerView, current: Round, now: float) -> list[Gift]:
        """Give the orphans to the first worker that comes."""
        orphans, current.orphans = current.orphans, []
        self.num_reassigned += sum(hi - lo for lo, hi in orphans)
        return [self.give(worker, orphans, current, now)] if orphans else []

    def late(self, now: float) -> list[WorkerView]:
        """Return the workers that are late with what they have."""
        if now < self.look_s and not self._anybody_late:
            return []
        late = [worker for worker in self._crew.values() if worker.num_due and worker.late_s <= now]
        self._anybody_late = bool(late)
        self.look_s = min((worker.late_s for worker in self._crew.values() if worker.late_s > now), default=math.inf)
        return [worker for worker in late if not worker.held]

    def speculate(self, current: Round, now: float) -> list[Gift]:
        """Give the shards of workers that are late to idle ones, too: the first copy counts."""
        late = self.late(now)
        timely = [worker for worker in self._crew.values() if worker.num_due and not worker.is_late(now)]
        idle = [worker for worker in self._crew.values() if not worker.num_due and not worker.pace.slow]
        if not late or not idle:
            return []
        missing = self._uncovered(current.missing(part for worker in late for part in worker.ranges), timely)
        self.num_speculative += sum(hi - lo for lo, hi in missing)
        return self._deal(missing, idle, current, now)

    def stuck(self, current: Round, now: float) -> list[str]:
        """Return the workers that owe something and have delivered nothing for far too long."""

        def limit_s(worker: WorkerView) -> float:
            return max(self._stuck_s, STUCK * LATE * (self._usual_s or 0.0) * worker.num_turns)

        heard = [worker for worker in self._crew.values() if not worker.held]
        silent = [worker for worker in heard if now - worker.moved_s > limit_s(worker)]
        return [worker.worker_id for worker in silent if current.missing(worker.ranges)]

    def closed(self, current: Round, now: float) -> list[WorkerView]:
        """Take in how long everybody took. Return the workers whose share of the shards changes for it."""
        computed = [worker for worker in self._crew.values() if worker.ranges]
        turns_s = [
            (now - worker.begun_s if worker.took_s is None else worker.took_s) / worker.num_turns for worker in computed
        ]
        limit_s = math.inf if self._usual_s is None else LATE * self._usual_s
        fair = min(turns_s, default=math.inf) <= limit_s  # else it was not a worker that was late, but everything
        changed = [
            worker
            for worker, turn_s in zip(computed, turns_s, strict=True)
            if worker.paces[current.evaluates].took(turn_s, now, late=fair and turn_s > limit_s)
        ]
        return [] if current.evaluates else changed

    def _expect(self, worker: WorkerView) -> None:
        """Say when a worker will be late with what it has."""
        if self._usual_s is None or not worker.num_due:
            return
        turn_s = max(self._usual_s, worker.pace.turn_s or 0.0) if worker.pace.slow else self._usual_s
        worker.late_s = worker.begun_s + max(LATE * turn_s * worker.num_turns, MIN_LATE_S)
        self.look_s = min(self.look_s, worker.late_s)

    def _shares(self, now: float) -> list[tuple[WorkerView, list[Range]]]:
        """Return the shards of each worker that has some. It is asked in every round, and seldom says something new."""
        workers = tuple(self._crew.values())
        if any(worker.pace.slow for worker in workers):
            return _of_each(workers, self._ranges_by_speed(list(workers), now))
        if workers != self._equals:
            self._equals, computing = workers, workers[: self._num_shards]
            ranges = assign(self._num_shards, [worker.num_cpus for worker in computing])
            self._equal_shares = _of_each(computing, ranges)
        return self._equal_shares

    def _ranges_by_speed(self, workers: list[WorkerView], now: float) -> list[Range]:
        counts = self._count_by_speed(workers, set())
        resting = [i for i, worker in enumerate(workers) if worker.pace.slow and not counts[i]]
        tried = {i for i in resting if not workers[i].pace.rests(now)}
        if tried and len(tried) < self._num_shards:
            counts = self._count_by_speed(workers, tried)
        return ranges_of(counts)

    def _count_by_speed(self, workers: list[WorkerView], tried: set[int]) -> list[int]:
        """Count the shards of each worker by its speed, those that are tried again excepted: they get one."""
        usual_s = usual_turn_s(worker.pace for worker in workers) or 1.0
        slowness = [
            max(round((worker.pace.turn_s or usual_s) / usual_s), 1) if worker.pace.slow else 1 for worker in workers
        ]
        rest = [i for i in range(len(workers)) if i not in tried]
        cpus = tuple(workers[i].num_cpus for i in rest)
        counted = count_by_speed(self._num_shards - len(tried), cpus, tuple(slowness[i] for i in rest))
        counts = dict(zip(rest, counted, strict=True))
        return [counts.get(i, 1) for i in range(len(workers))]

    def _deal(self, missing: list[Range], workers: list[WorkerView], current: Round, now: float) -> list[Gift]:
        if not missing:
            return []
        dealt = deal(missing, [worker.num_cpus for worker in workers])
        pairs = zip(workers, dealt, strict=True)
        return [self.give(worker, ranges, current, now) for worker, ranges in pairs if ranges]

    def _uncovered(self, missing: list[Range], workers: Iterable[WorkerView]) -> list[Range]:
        """Return those of some shards that none of these workers is computing, each once."""
        computing = {
            shard for worker in workers if worker.num_due for lo, hi in worker.ranges for shard in range(lo, hi)
        }
        shards = {shard for lo, hi in missing for shard in range(lo, hi)} - computing
        return [(shard, shard + 1) for shard in sorted(shards)]


def _of_each(workers: Sequence[WorkerView], ranges: Sequence[Range]) -> list[tuple[WorkerView, list[Range]]]:
    return [(worker, [(lo, hi)]) for worker, (lo, hi) in zip(workers, ranges, strict=True) if lo < hi]


@lru_cache(maxsize=4096)  # asked for every worker in every round
def num_nodes(ranges: tuple[Range, ...], num_shards: int) -> int:
    """Return how many nodes a worker sends for ranges of shards that it was given."""
    return sum(len(top_nodes(lo, hi, num_shards)) for lo, hi in ranges)
