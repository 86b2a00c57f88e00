"""Checkpoints and models as files: what is in them, and how damage is noticed.

A checkpoint carries a checksum of its tensors and of all that it says of them, so that a damaged one is refused by
name; it says whose it is, so that a job can start from it when that job is gone. Disk errors are OSErrors of the
caller's concern.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from google.protobuf import json_format

from lockstep_proto.layout import Layout, digest
from lockstep_proto.v1 import job_pb2
from lockstep_server.tensor_files import TensorFileError, read_metadata, read_tensors, write_tensors

Array = npt.NDArray[Any]
CHECKPOINT_FORMAT = "lockstep.checkpoint.v2"
MODEL_FORMAT = "lockstep.model.v1"


@dataclass(frozen=True)
class Checkpoint:
    """A job at one version: flat parameters and optimizer state, position, the best parameters so far.

    Nothing in it is written any more, so it costs no copy.
    """

    version: int
    epoch: int
    step_in_epoch: int
    parameters: Array
    optimizer_state: dict[str, Array]
    num_updates: int  # that the optimizer state has seen
    best: Array | None
    progress: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Whose checkpoint it is: what a job that starts from it is compared with."""

    job_id: str
    spec: job_pb2.JobSpec
    data_fingerprint: str
    validation_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint on disk says of itself, without its tensors."""

    version: int
    epoch: int
    step_in_epoch: int
    validation_loss: float | None  # of the last evaluation at or before its version
    digest: str  # of its parameters
    origin: Origin
    size_bytes: int
    time_s: float  # when it was written, since 1970


def write(path: Path, origin: Origin, checkpoint: Checkpoint, parameters_digest: str) -> None:
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
    job = {
        "id": origin.job_id,
        "data_fingerprint": origin.data_fingerprint,
        "validation_fingerprint": origin.validation_fingerprint,
    }
    said = {
        "format": CHECKPOINT_FORMAT,
        "position": json.dumps(position),
        "job": json.dumps(job),
        "spec": _spec_text(origin.spec),
        "digest": parameters_digest,
    }
    write_tensors(path, tensors, said | {"checksum": _checksum(tensors, said)})


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises TensorFileError for one that is damaged, or that is none; OSError."""
    tensors, said = read_tensors(path, CHECKPOINT_FORMAT)
    if said.pop("checksum", None) != _checksum(tensors, said):
        raise TensorFileError(f"{path}: the checksum does not fit its content: the file is damaged")
    position = json.loads(said["position"])
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


def describe(path: Path) -> Description:
    """Return what a checkpoint says of itself. Raises TensorFileError or OSError; damage to tensors is not noticed."""
    said = read_metadata(path, CHECKPOINT_FORMAT)
    try:
        position, job = json.loads(said["position"]), json.loads(said["job"])
        spec = json_format.Parse(said["spec"], job_pb2.JobSpec())
        stat = path.stat()
        return Description(
            version=position["version"],
            epoch=position["epoch"],
            step_in_epoch=position["step_in_epoch"],
            validation_loss=position["progress"].get("validation_loss"),
            digest=said["digest"],
            origin=Origin(
                job_id=job["id"],
                spec=spec,
                data_fingerprint=job["data_fingerprint"],
                validation_fingerprint=job["validation_fingerprint"],
            ),
            size_bytes=stat.st_size,
            time_s=stat.st_mtime,
        )
    except (KeyError, ValueError, json_format.ParseError) as error:
        raise TensorFileError(f"{path}: its description cannot be read: the file is damaged") from error


def write_model(path: Path, spec: job_pb2.JobSpec, flat: Array) -> None:
    """Write a model: tensors W2, b2, W3, ... as in the text, the spec and the digest beside them. Raises OSError."""
    layout = Layout.from_spec(spec)
    tensors: dict[str, Array] = {}
    for l, (weights, biases) in enumerate(layout.views(flat), start=2):
        tensors |= {f"W{l}": weights, f"b{l}": biases}
    metadata = {"format": MODEL_FORMAT, "spec": _spec_text(spec), "digest": digest(layout, flat)}
    write_tensors(path, tensors, metadata)


def read_model(path: Path, spec: job_pb2.JobSpec) -> Array:
    """Read the parameters of a model of the same shape and type as the spec's network, as one flat vector.

    Raises TensorFileError for a file that is damaged, that is no model, or whose shape is another; OSError.
    """
    tensors, metadata = read_tensors(path, MODEL_FORMAT)
    layout = Layout.from_spec(spec)
    flat = np.empty(layout.num_parameters, layout.dtype)
    for l, (weights, biases) in enumerate(layout.views(flat), start=2):
        for name, view in ((f"W{l}", weights), (f"b{l}", biases)):
            if name not in tensors or tensors[name].shape != view.shape or tensors[name].dtype != view.dtype:
                found = f"{tensors[name].dtype} {tensors[name].shape}" if name in tensors else "nothing"
                raise TensorFileError(f"{path}: {name} must be {view.dtype} {view.shape}, found {found}")
            view[...] = tensors[name]
    if len(tensors) != 2 * layout.num_layers:
        raise TensorFileError(f"{path}: has {len(tensors) // 2} layers, the network has {layout.num_layers}")
    if metadata.get("digest") != digest(layout, flat):
        raise TensorFileError(f"{path}: the digest does not fit its content: the file is damaged")
    return flat


def _spec_text(spec: job_pb2.JobSpec) -> str:
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=None)


def _checksum(tensors: Mapping[str, Array], said: Mapping[str, str]) -> str:
    """Enough against damage; what must stand against a forger is a digest."""
    checksum = xxhash.xxh3_128()
    for name in sorted(said):
        checksum.update(f"{name}={said[name]}\n".encode())
    for name in sorted(tensors):
        checksum.update(name.encode())
        checksum.update(np.ascontiguousarray(tensors[name]).data)
    return checksum.hexdigest()
