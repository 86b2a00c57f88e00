"""The workers of a training: who is there, who has the present version, who has gone silent."""

import math
from dataclasses import dataclass, field

from lockstep_proto.tree import Node, top_nodes
from lockstep_server.assignment import Range
from lockstep_server.pace import Pace, turns

TICKS_PER_LEASE = 4  # how often time is looked at; a hung worker is noticed at most this fraction late


@dataclass(eq=False)
class WorkerView:
    """What the training knows of one worker."""

    worker_id: str
    num_cpus: int
    heard_s: float
    synced: bool = False  # has the present version, or it is on its way, and gets every chunk of the next
    master_version: int = -1  # whose parameters it has got as they are, not rounded; holds only while it is synced
    ranges: list[Range] = field(default_factory=list)  # its shards in this round
    num_turns: int = 0  # that these take
    num_due: int = 0  # chunks of them that have yet to arrive
    begun_s: float = 0.0  # when it was given the first of them
    moved_s: float = 0.0  # when the last chunk arrived, or it was given shards
    late_s: float = math.inf  # when it will be late with them
    held_s: float | None = None  # since when it is not listened to, if so
    took_s: float | None = None  # seconds it took for its first shards of this round
    paces: dict[bool, Pace] = field(default_factory=lambda: {False: Pace(), True: Pace()})  # True: of evaluations

    def __post_init__(self) -> None:
        self.pace = self.paces[False]  # in steps

    def take(self, ranges: list[Range]) -> None:
        """Have these shards, too."""
        self.ranges = self.ranges + ranges
        self.num_turns = turns(sum([hi - lo for lo, hi in self.ranges]), self.num_cpus)

    @property
    def held(self) -> bool:
        """Whether it is not listened to now: then its silence says nothing."""
        return self.held_s is not None

    def release(self, now: float) -> None:
        """Be listened to again. The time in which it was not does not count."""
        if self.held_s is not None:
            held_for_s, self.held_s = now - self.held_s, None
            self.heard_s += held_for_s
            self.begun_s += held_for_s
            self.moved_s += held_for_s
            self.late_s += held_for_s

    def is_late(self, now: float) -> bool:
        """Whether it is late with its shards."""
        return bool(self.num_due) and self.late_s <= now and not self.held

    def nodes(self, num_shards: int) -> list[Node]:
        """Return the nodes that it sends for its shards."""
        return [node for lo, hi in self.ranges for node in top_nodes(lo, hi, num_shards)]

    def rest(self) -> None:
        """Have no shards."""
        self.ranges, self.num_turns, self.num_due, self.late_s, self.took_s = [], 0, 0, math.inf, None


class Crew(dict[str, WorkerView]):
    """The workers by their id, in the order in which they came."""

    def __init__(self, lease_s: float, now: float) -> None:
        super().__init__()
        self.lease_s = lease_s
        self._looked_s = now

    def heard(self, worker_id: str, now: float) -> None:
        """Renew a worker's lease."""
        if worker_id in self:
            self[worker_id].heard_s = now

    def silent(self, now: float) -> list[str]:
        """Return the workers whose lease is over. Time in which nobody looked does not count against them."""
        period = self.lease_s / TICKS_PER_LEASE
        stood_still = now - self._looked_s - period
        self._looked_s = now
        if stood_still > period:
            for worker in self.values():
                worker.heard_s += stood_still
                worker.moved_s += stood_still
        heard = [worker for worker in self.values() if not worker.held]
        return [worker.worker_id for worker in heard if now - worker.heard_s > self.lease_s]

    @property
    def synced(self) -> list[str]:
        """The workers that get every chunk of the next version."""
        return [worker.worker_id for worker in self.values() if worker.synced]

    def idle_first(self) -> list[WorkerView]:
        """Return all workers, those without shards first."""
        return sorted(self.values(), key=lambda worker: (worker.num_due > 0, worker.pace.slow))
