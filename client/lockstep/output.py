"""What the commands print: text for people, JSON for programs."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from lockstep.job import Event, Job
from lockstep_proto.spec import to_dict

SHORT_ID = 6  # digits that are shown where an id is to be typed again


def job_fields(job: Job) -> dict[str, Any]:
    """Return what `--format json` says of a job."""
    names = [
        "id", "name", "state", "phase", "message", "error_type", "stop_reason", "step", "num_steps", "epoch",
        "num_epochs", "loss", "validation_loss", "validation_accuracy", "rows_per_s", "num_workers", "remaining_s",
        "digest", "reproducible",
    ]  # fmt: skip
    return {name: getattr(job, name) for name in names} | {
        "created": job.created.isoformat() + "Z",
        "numerics": plain_message(job.numerics),
        "spec": to_dict(job.spec),
    }


def event_fields(event: Event) -> dict[str, Any]:
    """Return what `--format json` says of an event."""
    return {
        "sequence": event.sequence,
        "time": event.time.isoformat(),
        "severity": event.severity,
        "message": event.message,
    }


def plain_message(message: Message) -> dict[str, Any]:
    """Return all fields of a message without messages in it, or with repeated ones."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            values[field.name] = [plain_message(item) for item in value]
        else:
            values[field.name] = plain_message(value) if isinstance(value, Message) else value
    return values


def print_json(value: Any) -> None:
    """Print one JSON document, on one line where a program reads it. What is no number becomes null."""
    print(json.dumps(_finite(value), indent=2 if sys.stdout.isatty() else None, default=str), flush=True)


def print_fields(rows: Sequence[tuple[str, Any]]) -> None:
    """Print names and values, those that have one."""
    shown = [(name, value) for name, value in rows if value not in (None, "")]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console()
    # a program that reads the table gets whole lines, however narrow its window is said to be
    console.print(table, width=None if console.is_terminal else 200)


def print_status(job: Job) -> None:
    """Print how a job stands."""
    print_fields(
        [
            ("job", job.id),
            ("name", job.name),
            ("state", job.state),
            ("phase", job.phase if job.phase != job.state else ""),
            ("message", job.message),
            ("step", f"{job.step} of {job.num_steps}" if job.num_steps else ""),
            ("epoch", f"{job.epoch} of {job.num_epochs}" if job.num_epochs else ""),
            ("loss", _number(job.loss)),
            ("validation loss", _number(job.validation_loss)),
            ("validation accuracy", _number(job.validation_accuracy)),
            ("workers", job.num_workers or ""),
            ("sha256", job.digest),
            ("reproducible", "" if job.reproducible or not job.digest else "no: numerics = any"),
        ]
    )


def next_commands(job: Job) -> str:
    """Return the three commands that come after a submission."""
    short = job.id[:SHORT_ID]
    return (
        f"next:  lockstep watch {short}\n       lockstep stop {short}\n"
        f"       lockstep download {short} -o model.safetensors"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
