"""How long jobs have waited for workers."""

from collections.abc import Iterable


class Deadlines:
    """Remembers since when each waiting job waits, without a break."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def look(self, waiting: Iterable[tuple[str, float]], now: float) -> list[str]:
        """The jobs whose limit is over, given (job id, limit in seconds) of all that wait now."""
        limits = dict(waiting)
        self._since = {job_id: self._since.get(job_id, now) for job_id in limits}
        return [job_id for job_id, since in self._since.items() if now - since >= limits[job_id]]
