"""The page of numbers, docs/performance.md."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.table import Table

PERFORMANCE = Path("docs/performance.md")
_INTRODUCTION = """\
What Lockstep costs on one machine, beside the least it could cost. A table's first line is its baseline, unless a note
says otherwise; all lines are measured in turns, once a round, and the ratio is the median of the rounds' ratios. A
limit that was missed says so."""


@dataclass(frozen=True)
class Section:
    """The tables of one benchmark."""

    name: str
    what: str
    tables: list[Table]


def performance(command: str, sections: list[Section]) -> str:
    """Return the page."""
    date = datetime.datetime.now(datetime.UTC).date()
    facts = machine.describe()
    parts = [
        "# Performance",
        _INTRODUCTION,
        f"Measured on {date} by `{command}`, with nothing else running:",
        f"```\n{facts}\n```",
        *(f"## {section.name}: {section.what}\n\n{_tables(section)}" for section in sections),
    ]
    return "\n\n".join(parts) + "\n"


def _tables(section: Section) -> str:
    return "\n\n".join(table.markdown() for table in section.tables)
