"""How long jobs have waited."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wait:
    """That a job waits: for the cluster or, if a fleet is named by its number, for that to load its data."""

    job_id: str
    loading_by: int | None

    @property
    def for_data(self) -> bool:
        """Whether it waits for its data."""
        return self.loading_by is not None


class Deadlines:
    """Remembers since when each wait lasts, without a break."""

    def __init__(self) -> None:
        self._since: dict[Wait, float] = {}

    def look(self, waiting: Mapping[Wait, float], now: float) -> list[Wait]:
        """The waits whose limit is over, given the limits in seconds of all waits there are now."""
        self._since = {wait: self._since.get(wait, now) for wait in waiting}
        return [wait for wait, since in self._since.items() if now - since >= waiting[wait]]
