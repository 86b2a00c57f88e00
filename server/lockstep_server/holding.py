"""Back-pressure: which workers are not listened to while too much of a round waits to be summed.

A value waits for its sibling in the tree. Above the bound, only those workers are listened to that have most yet to
send: what the others have sent waits for theirs. So what is missing can always come. The bound is therefore not hard:
it is exceeded by some chunks of every worker, and by more where one has to send more nodes than the others.
"""

from lockstep_server.crew import Crew
from lockstep_server.effects import Effect, Listen


class Holding:
    """Holds workers of a crew. `most_bytes` may wait before any is held."""

    def __init__(self, crew: Crew, most_bytes: int) -> None:
        self._crew = crew
        self._most_bytes = most_bytes
        self._holds = False

    def look(self, num_bytes: int, now: float) -> list[Effect]:
        """Hold and release: so many bytes wait."""
        if num_bytes <= self._most_bytes:
            return self._release(now) if self._holds else []
        most_due = max((worker.num_due for worker in self._crew.values()), default=0)
        return [
            self._listen(worker_id, listens, now)
            for worker_id, worker in self._crew.items()
            if (listens := worker.num_due in (0, most_due)) is worker.held
        ]

    def _release(self, now: float) -> list[Effect]:
        self._holds = False
        return [self._listen(worker_id, True, now) for worker_id, worker in self._crew.items() if worker.held]

    def _listen(self, worker_id: str, listens: bool, now: float) -> Listen:
        worker = self._crew[worker_id]
        if listens:
            worker.release(now)
        else:
            self._holds = True
            worker.held_s = now
        return Listen(worker_id, listens)
