"""One line an event."""

import logging
import sys

from lockstep_server.logs import Formatter


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("name", logging.WARNING, "file", 1, message, None, None)
    made.created = 0.5
    vars(made).update(extra)
    return made


def test_a_line_has_time_level_message_and_what_it_is_about() -> None:
    line = Formatter().format(record("lost", job="3f2a", step=7, worker="w1"))
    assert line == "1970-01-01T00:00:00.500Z WARNING lost job=3f2a step=7 worker=w1"


def test_a_traceback_stays_in_its_line() -> None:
    made = record("two\nlines")
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = Formatter().format(made)
    assert "\n" not in line
    assert "WARNING two\\nlines traceback=" in line
    assert line.endswith("ValueError: why")
