"""The workers of a training: who is there, who has the present version, who has gone silent."""

from dataclasses import dataclass, field

from lockstep_server.assignment import Range

TICKS_PER_LEASE = 4  # how often time is looked at; a hung worker is noticed at most this fraction late


@dataclass
class WorkerView:
    """What the training knows of one worker."""

    worker_id: str
    num_cpus: int
    heard_s: float
    synced: bool = False  # has the present version, or it is on its way, and gets every chunk of the next
    ranges: list[Range] = field(default_factory=list)  # its shards in this round


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
        return [worker.worker_id for worker in self.values() if now - worker.heard_s > self.lease_s]

    @property
    def synced(self) -> list[str]:
        """The workers that get every chunk of the next version."""
        return [worker.worker_id for worker in self.values() if worker.synced]

    def idle_first(self) -> list[WorkerView]:
        """Return all workers, those without shards first."""
        return sorted(self.values(), key=lambda worker: bool(worker.ranges))
