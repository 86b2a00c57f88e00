"""Reads a JobSpec from a dict, a TOML or JSON file, or a message; and writes it as users do.

The .proto is the only schema. A `[training]` table in a file or dict is only a heading (TOML wants top-level keys
before the first table): its keys are those of the top level.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from lockstep_proto.defaults import complete
from lockstep_proto.reader import Violation, enum_names, fill
from lockstep_proto.rules import check
from lockstep_proto.v1 import job_pb2

__all__ = ["SpecError", "Violation", "check", "complete", "load_file", "override", "read_spec", "to_dict"]

HEADING = "training"


class SpecError(ValueError):
    """A spec that breaks rules. `violations` holds all of them; the text has one a line."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("\n".join(str(violation) for violation in violations))
        self.violations = list(violations)


def read_spec(
    source: "Mapping[str, Any] | str | Path | job_pb2.JobSpec", *, require_data: bool = False
) -> job_pb2.JobSpec:
    """Return the spec that `source` holds, with its defaults filled in.

    `require_data`: whether a spec without data breaks a rule, too. Raises SpecError with all violations.
    """
    if isinstance(source, job_pb2.JobSpec):
        spec, violations = job_pb2.JobSpec(), list[Violation]()
        spec.CopyFrom(source)
    else:
        values = dict(source) if isinstance(source, Mapping) else load_file(source)
        spec = job_pb2.JobSpec()
        lifted, violations = _lift_heading(values)
        violations = violations + fill(spec, lifted)
    spec = complete(spec)
    unread = {violation.path for violation in violations}
    violations += [found for found in check(spec, require_data=require_data) if not _explained(found.path, unread)]
    if violations:
        raise SpecError(violations)
    return spec


def load_file(path: "str | Path") -> dict[str, Any]:
    """Return the content of a TOML or JSON file. Raises SpecError naming the file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError([Violation("", f"{path}: there is no such file")]) from None
    except IsADirectoryError:
        raise SpecError([Violation("", f"{path}: is a directory, not a job file")]) from None
    except UnicodeDecodeError:
        raise SpecError([Violation("", f"{path}: is not a text file in UTF-8")]) from None
    except OSError as error:
        raise SpecError([Violation("", f"{path}: cannot be read: {error.strerror}")]) from None
    try:
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SpecError([Violation("", f"{path}: is not valid {kind}: {error}")]) from None
    if not isinstance(values, dict):
        raise SpecError([Violation("", f"{path}: must hold a table of fields, got {type(values).__name__}")])
    return values


def override(values: dict[str, Any], assignment: str) -> dict[str, Any]:
    """Return a copy of `values` with one "a.b.c=VALUE" carried out; VALUE is TOML, or else a string.

    A number stands for the place in a list: "network.layers.0.units=64". Raises SpecError.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise SpecError([Violation("", f"an override is written PATH=VALUE, got {assignment!r}")])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    changed: dict[str, Any] = json.loads(json.dumps(values, default=str))
    keys = path.strip().replace("[", ".").replace("]", "").split(".")
    if keys[0] == HEADING and HEADING not in values:
        keys = keys[1:] or keys
    elif HEADING in values and len(keys) == 1 and keys[0] in values[HEADING]:
        keys = [HEADING, *keys]
    place: Any = changed
    for i, key in enumerate(keys):
        here = ".".join(keys[: i + 1])
        index: Any = key
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                raise SpecError([Violation(here, f"there is no such place in a list of {len(place)}")])
            index = int(key)
        elif not isinstance(place, dict):
            raise SpecError([Violation(here, "is below a value that has no fields")])
        if i == len(keys) - 1:
            place[index] = value
        elif isinstance(place, dict):
            place = place.setdefault(key, {})
        else:
            place = place[index]
    return changed


def to_dict(spec: Message) -> dict[str, Any]:
    """Return a message as users write it: only what is set, enum values in lower case, batch_size as one value."""
    values: dict[str, Any] = {}
    for field, value in spec.ListFields():
        values[field.name] = [_plain(field, v) for v in value] if field.is_repeated else _plain(field, value)
    return values


def _plain(field: Any, value: Any) -> Any:
    if isinstance(value, job_pb2.BatchSize):
        return "full" if value.full else value.rows
    if isinstance(value, Message):
        return to_dict(value)
    if field.enum_type is not None:
        return next((name for name, number in enum_names(field.enum_type).items() if number == value), None)
    return value


def _lift_heading(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Violation]]:
    lifted = {key: value for key, value in values.items() if key != HEADING}
    heading = values.get(HEADING, {})
    if not isinstance(heading, Mapping):
        return lifted, [Violation(HEADING, f"must be a table of fields, got {heading!r}")]
    twice = [
        Violation(f"{HEADING}.{key}", f"is given at the top level, too ({key})") for key in heading if key in lifted
    ]
    return lifted | dict(heading), twice


def _explained(path: str, unread: set[str]) -> bool:
    """Whether a rule is broken only because the field could not be read in the first place."""
    return any(path == other or path.startswith((other + ".", other + "[")) for other in unread)
