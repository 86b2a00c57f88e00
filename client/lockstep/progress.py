"""Shows a job while it trains, and waits for its end."""

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from lockstep import addresses
from lockstep.job import JobState

if TYPE_CHECKING:
    from lockstep.job import Job
    from lockstep.watching import Update

LINE_EVERY_S = 1.0  # where lines cannot be written over
log = logging.getLogger("lockstep")


def follow(job: "Job", *, progress: bool, timeout_s: float | None) -> None:
    """Watch a job to its end and keep it up to date. Ctrl-C says how to come back, and is passed on."""
    if job.state.ended:
        return
    with says_how_to_come_back(job):
        show(job, Display() if progress else None, timeout_s=timeout_s)


def show(job: "Job", display: "Display | None", *, timeout_s: float | None) -> None:
    """Watch a job to its end and keep it up to date; without a display, only what happens to the connection is told."""
    try:
        for update in job._client._watch(job.id, timeout_s=timeout_s, known=job):
            job._take(update.job)
            if display is not None:
                display.show(update)
            elif update.notice:
                log.warning(update.notice)
    finally:
        if display is not None:
            display.close()


@contextmanager
def says_how_to_come_back(job: "Job") -> Iterator[None]:
    """On Ctrl-C, say that the job goes on."""
    try:
        yield
    except KeyboardInterrupt:
        short = job.id[:6]
        print(
            f"\njob {job.id} goes on; come back with `lockstep watch {short}{addresses.option(job.address)}` "
            f"or Client({job.address!r}).wait({short!r})",
            file=sys.stderr,
        )
        raise


class Display:
    """One line that is written over in a terminal or notebook; elsewhere a line each second."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._in_place = self._out.isatty() or "ipykernel" in sys.modules
        self._width = 0
        self._written_s: float | None = None
        self._last = ""
        self._is_closed = False

    def show(self, update: "Update") -> None:
        """Show one update: events that matter as lines of their own, then the state of things; nothing once closed."""
        if self._is_closed:
            return
        for event in update.events:
            if event.severity != "info":
                self._line(f"{event.severity}: {event.message}")
        if update.notice:
            self._line(update.notice)
        width = shutil.get_terminal_size().columns - 1 if self._in_place else None
        text = describe(update.job, width)
        if self._in_place:
            self._write_over(text[:width])  # a line that wraps could not be written over
        elif text != self._last and (update.job.state.ended or self._is_due()):
            self._written_s, self._last = time.monotonic(), text
            self._out.write(text + "\n")
        self._out.flush()

    def close(self) -> None:
        """Leave the line."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._in_place and self._width:
            self._out.write("\n")
            self._out.flush()

    def _write_over(self, text: str) -> None:
        self._out.write("\r" + text.ljust(self._width))
        self._width = len(text)

    def _line(self, text: str) -> None:
        self._out.write(("\r" + text.ljust(self._width) if self._in_place else text) + "\n")
        self._width = 0

    def _is_due(self) -> bool:
        return self._written_s is None or time.monotonic() - self._written_s >= LINE_EVERY_S


def describe(job: "Job", width: int | None = None) -> str:
    """Say in one line how a job stands; where it has to be narrow, what matters least is left out."""
    training = job.state is JobState.RUNNING and job.num_steps > 0
    parts = {
        "name": job.name,
        "state": "" if job.state is JobState.RUNNING else str(job.state),
        "phase": job.phase if _is_telling(job) else "",
        "step": f"step {job.step}/{job.num_steps}" if job.num_steps else "",
        "epoch": f"epoch {job.epoch}/{job.num_epochs}" if job.num_steps else "",
        "loss": _number("loss", job.loss),
        "validation loss": _number("val loss", job.validation_loss),
        "validation accuracy": _number("val acc", job.validation_accuracy),
        "speed": f"{job.rows_per_s:,.0f} rows/s" if training and job.rows_per_s else "",
        "workers": counted(job.num_workers, "worker") if training else "",
        "left": f"{_duration(job.remaining_s)} left" if training and job.remaining_s is not None else "",
        "message": job.message if job.state.ended else "",
    }
    for least in ("", "validation loss", "validation accuracy", "name"):
        parts.pop(least, None)
        line = "  ".join(part for part in parts.values() if part)
        if width is None or len(line) <= width:
            break
    return line


def _is_telling(job: "Job") -> bool:
    """Whether the phase says more than state, step and epoch do."""
    return not job.state.ended and job.phase != str(job.state) and not job.phase.startswith(("step ", "evaluating "))


def _number(label: str, value: float | None) -> str:
    return "" if value is None else f"{label} {value:.4f}"


def counted(number: int, what: str) -> str:
    """Return "1 worker" or "2 workers"."""
    return f"{number} {what}{'s' if number != 1 else ''}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
