"""Samples of several ways to do one thing, as lines of text or of Markdown.

The first way is the baseline. All ways are measured in turns, once a round, and compared with it round by round: a
machine that slows down for a while slows down both.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

HEAD = ("median", "min", "max", "limit", "ratio")


@dataclass(frozen=True)
class Limit:
    """What a median, or a ratio to the baseline, is to reach."""

    value: float
    of_ratio: bool = False
    at_least: bool = False

    def holds(self, median: float, ratio: float) -> bool:
        """Whether it is kept."""
        found = ratio if self.of_ratio else median
        return found >= self.value if self.at_least else found <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}{' x' if self.of_ratio else ''}"


@dataclass
class Row:
    """One way, measured once a round."""

    name: str
    limit: Limit | None = None
    baseline: "Row | None" = None  # where it is not the table's first
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.samples)

    def ratio_to(self, baseline: "Row") -> float:
        """Return the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.samples, baseline.samples, strict=True))


@dataclass
class Table:
    """One case."""

    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    note: str = ""

    def add(self, name: str, limit: Limit | None = None, baseline: Row | None = None) -> Row:
        """Begin a row."""
        self.rows.append(Row(name, limit, baseline))
        return self.rows[-1]

    def __str__(self) -> str:
        cells = [("", *HEAD), *map(self._cells, self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *_right(row[1:], widths[1:])]).rstrip() for row in cells]
        return "\n".join([f"{self.title}, {self.unit}", *lines, *([self.note] if self.note else [])])

    def markdown(self) -> str:
        """Return the table as Markdown, with its title as a heading."""
        head = [f"### {self.title}", "", _bar((self.unit, *HEAD)), "| --- |" + " ---: |" * len(HEAD)]
        notes = ["", self.note] if self.note else []
        return "\n".join([*head, *(_bar(self._cells(row)) for row in self.rows), *notes])

    def _cells(self, row: Row) -> tuple[str, ...]:
        ratio = row.ratio_to(row.baseline or self.rows[0])
        numbers = [_number(number) for number in (row.median, min(row.samples), max(row.samples))]
        limit = "" if row.limit is None else str(row.limit)
        if row.limit is not None and not row.limit.holds(row.median, ratio):
            limit += " missed"
        return row.name, *numbers, limit, f"{ratio:.2f}"


def _number(value: float) -> str:
    """Four digits, as many of them as can be before the point."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:.{digits}f}"


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
