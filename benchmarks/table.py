"""Samples of several ways to do one thing, as lines of text."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Table:
    """Milliseconds of one case by way. The first way is the floor: the others are compared with it round by round."""

    title: str
    rows: list["Row"] = field(default_factory=list)

    def add(self, name: str, limit_ms: float | None = None) -> "Row":
        """Begin a row."""
        self.rows.append(Row(name, limit_ms))
        return self.rows[-1]

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        head = f"{'':{width}}  {'median':>9}  {'min':>9}  {'max':>9}  {'to floor':>8}  {'limit':>7}"
        lines = [row.line(width, self.rows[0]) for row in self.rows]
        return "\n".join([f"{self.title}, ms a step", head, *lines])


@dataclass
class Row:
    """One way, measured once a round."""

    name: str
    limit_ms: float | None
    samples_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """The middle one."""
        return statistics.median(self.samples_ms)

    def ratio_to(self, floor: "Row") -> float:
        """Return the median of the rounds' ratios: a machine that slows down for a while slows down both."""
        return statistics.median(a / b for a, b in zip(self.samples_ms, floor.samples_ms, strict=True))

    def line(self, width: int, floor: "Row") -> str:
        """Return the row as text."""
        numbers = (self.median_ms, min(self.samples_ms), max(self.samples_ms))
        columns = [f"{self.name:{width}}", *(f"{number:9.3f}" for number in numbers)]
        columns.append(f"{self.ratio_to(floor):8.2f}")
        if self.limit_ms is not None:
            columns.append(f"{self.limit_ms:7g}{'' if self.median_ms <= self.limit_ms else '  over the limit'}")
        return "  ".join(columns)
