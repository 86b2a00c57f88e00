"""Structured logs on stderr: one line an event, `time level message key=value ...`."""

import logging
import sys
from datetime import UTC, datetime

KEYS = ("job", "step", "worker")  # given to a call as extra={"job": ...}


class Formatter(logging.Formatter):
    """Writes a record in one line, line breaks of a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """`2026-01-31T12:00:00.000Z INFO message job=3f2a...`."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        parts = [time, record.levelname, _one_line(record.getMessage())]
        parts += [f"{key}={getattr(record, key)}" for key in KEYS if hasattr(record, key)]
        if record.exc_info:
            parts.append("traceback=" + _one_line(self.formatException(record.exc_info)))
        return " ".join(parts)


def configure(level: int = logging.INFO) -> None:
    """Send all logs of this process to stderr in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")
