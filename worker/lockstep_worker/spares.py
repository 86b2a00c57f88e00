"""Spares: processes of workers whose job is over, and of none yet, kept for a while for the next job.

A new process takes most of a second until it can compute; a spare has all that behind it.
"""

SPARE_S = 300.0  # who tries things out submits again within; after that Ray may have their CPUs and memory


class Spares:
    """The spares by name, which is the id of the last worker they were, and when each is to end."""

    def __init__(self) -> None:
        self._end_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._end_s)

    def keep(self, name: str, now: float) -> None:
        """Keep a process for the next worker."""
        self._end_s[name] = now + SPARE_S

    def take(self) -> str | None:
        """Take out the one that was last kept, if there is any, to be a worker again."""
        return self._end_s.popitem()[0] if self._end_s else None

    def drop(self, name: str) -> bool:
        """Forget a spare. Return whether it was one."""
        return self._end_s.pop(name, None) is not None

    def overdue(self, now: float) -> list[str]:
        """Forget those that nobody needed for so long, and return them."""
        found = [name for name, end_s in self._end_s.items() if end_s <= now]
        for name in found:
            del self._end_s[name]
        return found
