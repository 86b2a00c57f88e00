"""What the commands print: text for people, JSON for programs."""

import json
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from lockstep import addresses
from lockstep.job import Job
from lockstep.records import Checkpoint, Event
from lockstep_proto.spec import to_dict

SHORT_ID = 6  # digits that are shown where an id is to be typed again


def job_fields(job: Job) -> dict[str, Any]:
    """Return what `--format json` says of a job."""
    names = [
        "id", "name", "state", "phase", "message", "error_type", "stop_reason", "created", "started", "finished",
        "attempt", "step", "num_steps", "epoch", "num_epochs", "loss", "validation_loss", "validation_accuracy",
        "rows_per_s", "remaining_s", "num_workers", "num_rows", "num_validation_rows", "digest", "reproducible",
        "data_fingerprint", "validation_fingerprint", "started_from_job", "start_version",
    ]  # fmt: skip
    return {name: getattr(job, name) for name in names} | {
        "numerics": message_fields(job.numerics),
        "server_numerics": message_fields(job.server_numerics),
        "spec": to_dict(job.spec),
    }


def event_fields(event: Event) -> dict[str, Any]:
    """Return what `--format json` says of an event."""
    return vars(event)


def message_fields(message: Message) -> dict[str, Any]:
    """Return all fields of a message, those of messages within it too."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            values[field.name] = [message_fields(item) if isinstance(item, Message) else item for item in value]
        else:
            values[field.name] = message_fields(value) if isinstance(value, Message) else value
    return values


def print_json(value: Any) -> None:
    """Print one JSON document, on one line where a program reads it."""
    print(to_json(value, indent=2 if sys.stdout.isatty() else None), flush=True)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return a JSON document. Times are written as in RFC 3339; what is no number becomes null."""
    return json.dumps(_plain(value), indent=indent)


def print_fields(rows: Sequence[tuple[str, Any]]) -> None:
    """Print names and values, those that have one."""
    shown = [(name, value) for name, value in rows if value not in (None, "")]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, a line each row."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_status(job: Job) -> None:
    """Print how a job stands."""
    rows = f"{job.num_rows:,}" + (f" and {job.num_validation_rows:,} for validation" if job.num_validation_rows else "")
    print_fields(
        [
            ("job", job.id),
            ("name", job.name),
            ("state", job.state),
            ("phase", job.phase if job.phase != job.state else ""),
            ("message", job.message),
            ("created", _time(job.created)),
            ("started", _time(job.started)),
            ("finished", _time(job.finished)),
            ("started from", _start(job)),
            ("rows", rows if job.num_rows else ""),
            ("data", " and ".join(filter(None, (job.data_fingerprint[:16], job.validation_fingerprint[:16])))),
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


def print_events(events: Sequence[Event]) -> None:
    """Print what has happened, a line each."""
    for event in events:
        severity = "" if event.severity == "info" else f"{event.severity}: "
        print(f"{_time(event.time)}  {severity}{event.message}")


def checkpoint_row(checkpoint: Checkpoint) -> tuple[Any, ...]:
    """Return the line of a checkpoint in a table."""
    return (
        checkpoint.version,
        checkpoint.epoch,
        checkpoint.step_in_epoch,
        f"{checkpoint.size_bytes:,}",
        _time(checkpoint.time),
        _number(checkpoint.validation_loss),
    )


def short_id(job: Job) -> str:
    """Return the beginning of the job's id, which is enough for commands."""
    return job.id[:SHORT_ID]


def next_commands(job: Job) -> str:
    """Return the three commands that come after a submission."""
    verbs = ("watch {}", "stop {}", "download {} -o model.safetensors")
    server = addresses.option(job.address)
    lines = [f"lockstep {verb.format(short_id(job))}{server}" for verb in verbs]
    return "next:  " + "\n       ".join(lines)


def _start(job: Job) -> str:
    """Say what a job started from; nothing if it began afresh."""
    if job.started_from_job:
        return f"job {job.started_from_job}, at version {job.start_version}"
    return "a saved model" if job.spec.start_from.model else ""


def _time(time: datetime | None) -> str:
    return "" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _plain(value: Any) -> Any:
    """Return what JSON has for a value."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
