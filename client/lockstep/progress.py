"""Shows a job while it trains, and waits for its end."""

import sys
import time
from typing import TYPE_CHECKING, TextIO

from lockstep.job import JobState

if TYPE_CHECKING:
    from lockstep.client import Update
    from lockstep.job import Job

LINE_EVERY_S = 1.0  # where lines cannot be written over


def follow(job: "Job", *, progress: bool, timeout_s: float | None) -> None:
    """Watch a job to its end and keep it up to date. Ctrl-C says how to come back, and is passed on."""
    if job.state.ended:
        return
    display = Display() if progress else None
    try:
        for update in job._client.watch(job.id, timeout_s=timeout_s):
            job._message = update.job._message
            if display is not None:
                display.show(update)
    except KeyboardInterrupt:
        print(
            f"\njob {job.id} goes on; come back with `lockstep watch {job.id[:6]}` "
            f"or client.get({job.id[:6]!r}).wait()",
            file=sys.stderr,
        )
        raise
    finally:
        if display is not None:
            display.close()


class Display:
    """One line that is written over in a terminal or notebook; elsewhere a line each second."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._in_place = self._out.isatty() or "ipykernel" in sys.modules
        self._width = 0
        self._written_s = 0.0
        self._last = ""

    def show(self, update: "Update") -> None:
        """Show one update: events that matter as lines of their own, then the state of things."""
        for event in update.events:
            if event.severity != "info":
                self._line(f"{event.severity}: {event.message}")
        if update.notice:
            self._line(update.notice)
        text = describe(update.job)
        if self._in_place:
            self._out.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif text != self._last and (update.job.state.ended or time.monotonic() - self._written_s >= LINE_EVERY_S):
            self._written_s, self._last = time.monotonic(), text
            self._out.write(text + "\n")
        self._out.flush()

    def close(self) -> None:
        """Leave the line."""
        if self._in_place and self._width:
            self._out.write("\n")
            self._out.flush()

    def _line(self, text: str) -> None:
        self._out.write(("\r" + text.ljust(self._width) if self._in_place else text) + "\n")
        self._width = 0


def describe(job: "Job") -> str:
    """Say in one line how a job stands."""
    parts = [job.name]
    if job.state is not JobState.RUNNING:
        parts.append(str(job.state))
    if job.num_steps == 0 or not (job.phase.startswith("step") or job.state.ended):
        parts.append(job.phase if job.phase != str(job.state) else "")
    if job.num_steps:
        parts += [f"step {job.step}/{job.num_steps}", f"epoch {job.epoch}/{job.num_epochs}"]
    for label, value in (("loss", job.loss), ("val loss", job.validation_loss), ("val acc", job.validation_accuracy)):
        if value is not None:
            parts.append(f"{label} {value:.4f}")
    if job.state is JobState.RUNNING and job.num_steps:
        parts += [f"{job.rows_per_s:,.0f} rows/s", f"{job.num_workers} worker{'s' if job.num_workers != 1 else ''}"]
        if job.remaining_s is not None:
            parts.append(f"{_duration(job.remaining_s)} left")
    if job.state.ended and job.message:
        parts.append(job.message)
    return "  ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
