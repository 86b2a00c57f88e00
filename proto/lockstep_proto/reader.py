"""Reads a dict into a message by the message's own descriptor, and gathers everything that does not fit."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from lockstep_proto.v1 import job_pb2

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong with a spec: where ("network.layers[1].units") and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def fill(message: Message, values: Mapping[str, Any], path: str = "") -> list[Violation]:
    """Write `values` into `message`. Return what does not fit; the rest is written all the same."""
    violations = []
    fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in fields:
            violations.append(Violation(where, f"is not known; {_suggest(str(name), fields)}"))
        elif value is not None:
            violations += _fill_field(message, fields[name], value, where)
    return violations + _doubled_oneofs(message, values, path)


def _fill_field(message: Message, field: FieldDescriptor, value: Any, where: str) -> list[Violation]:
    if field.is_repeated:
        return _fill_repeated(getattr(message, field.name), field, value, where)
    if field.message_type is not None:
        return _fill_message(getattr(message, field.name), value, where)
    converted, problem = _convert(field, value)
    if problem:
        return [Violation(where, problem)]
    setattr(message, field.name, converted)
    return []


def _fill_repeated(target: Any, field: FieldDescriptor, value: Any, where: str) -> list[Violation]:
    """A single value stands for a list of one."""
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else [value]
    violations = []
    for i, item in enumerate(values):
        if field.message_type is not None:
            violations += _fill_message(target.add(), item, f"{where}[{i}]")
            continue
        converted, problem = _convert(field, item)
        if problem:
            violations.append(Violation(f"{where}[{i}]", problem))
        else:
            target.append(converted)
    return violations


def _fill_message(message: Message, value: Any, where: str) -> list[Violation]:
    message.SetInParent()
    if isinstance(value, Mapping):
        return fill(message, value, where)
    if isinstance(message, job_pb2.BatchSize):
        return _fill_batch_size(message, value, where)
    if isinstance(message, job_pb2.InitialParameters) and isinstance(value, str):
        return fill(message, {"initializer": value}, where)
    if isinstance(value, str) and isinstance(message, job_pb2.Optimizer | job_pb2.Schedule):
        kinds = [field.name for field in message.DESCRIPTOR.oneofs_by_name["kind"].fields]
        if value in kinds:
            getattr(message, value).SetInParent()
            return []
        return [Violation(where, f"must be one of {', '.join(kinds)}, got {value!r}{_did_you_mean(value, kinds)}")]
    return [Violation(where, f"must be a table of fields, got {value!r}")]


def _fill_batch_size(message: job_pb2.BatchSize, value: Any, where: str) -> list[Violation]:
    if value == "full":
        message.full = True
        return []
    if isinstance(value, str):
        return [Violation(where, f'must be a number of rows or "full", got {value!r}')]
    converted, problem = _convert(message.DESCRIPTOR.fields_by_name["rows"], value)
    if problem:
        return [Violation(where, problem)]
    message.rows = converted
    return []


def _convert(field: FieldDescriptor, value: Any) -> tuple[Any, str]:
    """Return the value as the field takes it, or what is wrong with it."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value  # of numpy
    if field.enum_type is not None:
        return _convert_enum(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_STRING:
        return (value, "") if isinstance(value, str) else (None, f"must be a string, got {value!r}")
    if field.type == FieldDescriptor.TYPE_BOOL:
        return (value, "") if isinstance(value, bool) else (None, f"must be true or false, got {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"must be a number, got {value!r}"
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return (float(value), "") if math.isfinite(value) else (None, f"must be finite, got {value!r}")
    if not isinstance(value, int):
        return None, f"must be a whole number, got {value!r}"
    lowest, highest = _INTEGERS[field.type]
    if not lowest <= value <= highest:
        return None, f"must be between {lowest} and {highest}, got {value}"
    return value, ""


def unreadable(message: Message, path: str = "") -> list[Violation]:
    """Return what a message may hold but a dict may not: numbers that are not finite, enum numbers without a name."""
    found = []
    for field, value in message.ListFields():
        where = f"{path}.{field.name}" if path else field.name
        items = list(enumerate(value)) if field.is_repeated else [(None, value)]
        for i, item in items:
            place = where if i is None else f"{where}[{i}]"
            if isinstance(item, Message):
                found += unreadable(item, place)
            elif isinstance(item, float) and not math.isfinite(item):
                found.append(Violation(place, f"must be finite, got {item!r}"))
            elif field.enum_type is not None and item not in field.enum_type.values_by_number:
                found.append(Violation(place, f"must be one of {', '.join(enum_names(field.enum_type))}, got {item}"))
    return found


def enum_names(enum: EnumDescriptor) -> dict[str, int]:
    """Return the values of an enum as users write them: in lower case, without the prefix, without UNSPECIFIED."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in enum.values if value.number}


def _convert_enum(enum: EnumDescriptor, value: Any) -> tuple[Any, str]:
    names = enum_names(enum)
    if isinstance(value, str) and value in names:
        return names[value], ""
    allowed = ", ".join(names)
    return None, f"must be one of {allowed}, got {value!r}{_did_you_mean(str(value), names)}"


def _doubled_oneofs(message: Message, values: Mapping[str, Any], path: str) -> list[Violation]:
    violations = []
    for oneof in message.DESCRIPTOR.oneofs:
        given = [field.name for field in oneof.fields if values.get(field.name) is not None]
        if len(given) > 1:
            violations.append(Violation(path, f"takes one of {', '.join(given)}, got all of them"))
    return violations


def _suggest(name: str, known: Iterable[str]) -> str:
    return _did_you_mean(name, known).lstrip("; ") or f"the fields are {', '.join(known)}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
