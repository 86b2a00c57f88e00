"""Checkpoints and models on disk: safetensors files that are written whole or not at all.

A file is written under a temporary name, synced, and renamed; its directory is synced too. A checkpoint carries the
SHA-256 of its tensors, so that a damaged one is refused by name. Disk errors are OSErrors of the caller's concern.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from google.protobuf import json_format

from lockstep_proto import failpoints
from lockstep_proto.layout import Layout, digest
from lockstep_proto.model_file import sorted_header
from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]
CHECKPOINT_FORMAT = "lockstep.checkpoint.v1"
MODEL_FORMAT = "lockstep.model.v1"


class CheckpointError(ValueError):
    """A checkpoint or model file cannot be used. Says which file, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """A job at one version: flat parameters and optimizer state, position, the best parameters so far."""

    version: int
    epoch: int
    step_in_epoch: int
    parameters: Array
    optimizer_state: dict[str, Array]
    num_updates: int  # that the optimizer state has seen
    best: Array | None
    progress: dict[str, Any]


def write(path: Path, spec: job_pb2.JobSpec, checkpoint: Checkpoint) -> None:
    """Write a checkpoint. Raises OSError."""
    tensors = {"parameters": checkpoint.parameters}
    tensors |= {f"state.{name}": values for name, values in checkpoint.optimizer_state.items()}
    if checkpoint.best is not None:
        tensors["best"] = checkpoint.best
    position = {
        "version": checkpoint.version,
        "epoch": checkpoint.epoch,
        "step_in_epoch": checkpoint.step_in_epoch,
        "num_updates": checkpoint.num_updates,
        "progress": checkpoint.progress,
    }
    metadata = {
        "format": CHECKPOINT_FORMAT,
        "position": json.dumps(position),
        "checksum": _checksum(tensors, json.dumps(position)),
    }
    _write(path, tensors, metadata)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError for one that is damaged, or that is none."""
    tensors, metadata = _read(path, CHECKPOINT_FORMAT)
    if metadata.get("checksum") != _checksum(tensors, metadata.get("position", "")):
        raise CheckpointError(f"{path}: the checksum does not fit its content: the file is damaged")
    position = json.loads(metadata["position"])
    state = {name.removeprefix("state."): values for name, values in tensors.items() if name.startswith("state.")}
    return Checkpoint(
        version=position["version"],
        epoch=position["epoch"],
        step_in_epoch=position["step_in_epoch"],
        parameters=tensors["parameters"],
        optimizer_state=state,
        num_updates=position["num_updates"],
        best=tensors.get("best"),
        progress=position["progress"],
    )


def write_model(path: Path, spec: job_pb2.JobSpec, flat: Array) -> None:
    """Write a model: tensors W2, b2, W3, ... as in the text, the spec and the digest beside them. Raises OSError."""
    layout = Layout.from_spec(spec)
    tensors: dict[str, Array] = {}
    for l, (weights, biases) in enumerate(layout.views(flat), start=2):
        tensors |= {f"W{l}": weights, f"b{l}": biases}
    metadata = {
        "format": MODEL_FORMAT,
        "spec": json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=None),
        "digest": digest(layout, flat),
    }
    _write(path, tensors, metadata)


def read_model(path: Path, spec: job_pb2.JobSpec) -> Array:
    """Read the parameters of a model of the same shape and type as the spec's network, as one flat vector.

    Raises CheckpointError for a file that is damaged, that is no model, or whose shape is another.
    """
    tensors, metadata = _read(path, MODEL_FORMAT)
    layout = Layout.from_spec(spec)
    flat = np.empty(layout.num_parameters, layout.dtype)
    for l, (weights, biases) in enumerate(layout.views(flat), start=2):
        for name, view in ((f"W{l}", weights), (f"b{l}", biases)):
            if name not in tensors or tensors[name].shape != view.shape or tensors[name].dtype != view.dtype:
                found = f"{tensors[name].dtype} {tensors[name].shape}" if name in tensors else "nothing"
                raise CheckpointError(f"{path}: {name} must be {view.dtype} {view.shape}, found {found}")
            view[...] = tensors[name]
    if len(tensors) != 2 * layout.num_layers:
        raise CheckpointError(f"{path}: has {len(tensors) // 2} layers, the network has {layout.num_layers}")
    if metadata.get("digest") != digest(layout, flat):
        raise CheckpointError(f"{path}: the digest does not fit its content: the file is damaged")
    return flat


def _write(path: Path, tensors: Mapping[str, Array], metadata: dict[str, str]) -> None:
    # safetensors takes the memory of an array as it lies: one that is not C-contiguous would be saved scrambled
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            failpoints.hit("server.file.begun")
            header, content = sorted_header(safetensors.numpy.save(contiguous, metadata))
            file.writelines([header, content[: len(content) // 2]])
            file.flush()
            failpoints.hit("server.file.half_written")
            file.write(content[len(content) // 2 :])
            file.flush()
            failpoints.hit("server.file.written")
            os.fsync(file.fileno())
        failpoints.hit("server.file.synced")
        temporary.rename(path)
        failpoints.hit("server.file.renamed")
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(path: Path, expected_format: str) -> tuple[dict[str, Array], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    if metadata.get("format") != expected_format:
        raise CheckpointError(f"{path}: its format is {metadata.get('format')!r}, not {expected_format!r}")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Array], position: str) -> str:
    sha = hashlib.sha256(position.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(tensors[name]).data)
    return sha.hexdigest()
