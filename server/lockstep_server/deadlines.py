"""How long jobs have waited."""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Remembers since when each wait lasts, without a break."""

    def __init__(self) -> None:
        self._since: dict[K, float] = {}

    def look(self, waiting: Mapping[K, float], now: float) -> list[K]:
        """The waits whose limit is over, given the limits in seconds of all waits there are now."""
        self._since = {wait: self._since.get(wait, now) for wait in waiting}
        return [wait for wait, since in self._since.items() if now - since >= waiting[wait]]
