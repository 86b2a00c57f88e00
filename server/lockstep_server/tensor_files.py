"""Tensors and metadata on disk: safetensors files that are written whole or not at all.

A file is written under a temporary name, synced, and renamed; its directory is synced too. Arrays are handed to the
system as they lie in memory, so that writing beside a training costs no second copy and hardly the interpreter's lock.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import safetensors
import safetensors.numpy

from lockstep_proto import failpoints
from lockstep_proto.model_file import encode
from lockstep_server.disk import sync_directory, write_all

Array = npt.NDArray[Any]
TEMPORARY = ".*.tmp"  # what a killed server may leave behind
MAX_HEADER_BYTES = 100_000_000  # as the library has it


class TensorFileError(ValueError):
    """A file of tensors cannot be used. Says which, and why."""


def write_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a file. Raises OSError; what was there under this name is then there still."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            failpoints.hit("server.file.begun")
            _write_halves(file.fileno(), encode(tensors, metadata))
            failpoints.hit("server.file.written")
            os.fsync(file.fileno())
        failpoints.hit("server.file.synced")
        temporary.rename(path)
        failpoints.hit("server.file.renamed")
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Return tensors and metadata of a file of this format. Raises TensorFileError or OSError."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except safetensors.SafetensorError as error:
        raise TensorFileError(f"{path}: not a whole safetensors file: {error}") from error
    _check_format(path, metadata, expected_format)
    return tensors, metadata


def read_metadata(path: Path, expected_format: str) -> dict[str, str]:
    """Return the metadata alone. Raises TensorFileError or OSError."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(size) if size <= MAX_HEADER_BYTES else b""
    try:
        metadata = json.loads(text).get("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise TensorFileError(f"{path}: not a whole safetensors file: its header cannot be read") from error
    _check_format(path, metadata, expected_format)
    return dict(metadata)


def _write_halves(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    half, written = sum(len(part) for part in parts) // 2, 0
    for part in parts:
        before = max(0, min(half - written, len(part)))
        write_all(descriptor, part[:before])
        if written < half <= written + len(part):
            failpoints.hit("server.file.half_written")
        write_all(descriptor, part[before:])
        written += len(part)


def _check_format(path: Path, metadata: Mapping[str, str], expected: str) -> None:
    if metadata.get("format") != expected:
        raise TensorFileError(f"{path}: its format is {metadata.get('format')!r}, not {expected!r}")
