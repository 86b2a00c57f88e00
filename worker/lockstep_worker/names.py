"""Names of columns and arrays: whether those that are wanted are there, and how they look in a message."""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

from lockstep_worker.errors import DataError

SHOWN = 20  # names in a message
SHOWN_CHARS = 40  # of a name or value


def check_names(label: str, kind: str, wanted: Iterable[str], known: Sequence[str], hint: str = "") -> None:
    """Raise DataError for a wanted column or array that is not there, or there twice."""
    counts = Counter(known)
    for name in wanted:
        if counts[name] > 1:
            raise DataError(f"{label}: there are {counts[name]} {kind}s {shown(name)}; give each its own name")
        if not counts[name]:
            close = _closest(name, known)
            meant = f"did you mean {shown(close)}? " if close is not None else ""
            end = f" ({hint})" if hint else ""
            raise DataError(f"{label}: there is no {kind} {shown(name)}; {meant}it has {listed(known)}{end}")


def listed(names: Sequence[str]) -> str:
    """Return names for a message, not too many."""
    few = ", ".join(_clipped(name) if name and name.isprintable() else shown(name) for name in names[:SHOWN])
    return (few or "none") + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def shown(text: str) -> str:
    """Return a name or value for a message, in quotes and not too long."""
    return repr(_clipped(text))


def _clipped(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def _closest(name: str, known: Sequence[str]) -> str | None:
    plain = name.strip().casefold()
    alike = (other for other in known if other.strip().casefold() == plain)
    return next(alike, None) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
