"""Loads a job's data by Ray tasks: one Ray object a shard, which Ray can rebuild from its task.

Tasks ask for no CPU, since the actors hold them. Their errors come back as values, never as tracebacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_worker.dataset import Dataset, describe
from lockstep_worker.errors import DataError
from lockstep_worker.sources import find_files
from lockstep_worker.uploads import cache_dir, fetch_upload

UPLOAD_LABEL_CHARS = 12  # of its SHA-256, when a message names an upload


@dataclass(frozen=True)
class Place:
    """Where a job's data are, for a task on any machine."""

    spec: bytes  # an encoded JobSpec
    training: bool
    server: str
    roots: tuple[str, ...]

    def dataset(self) -> Dataset:
        """Describe the data as this machine sees them. Raises DataError."""
        spec = job_pb2.JobSpec.FromString(self.spec)
        data = spec.data if self.training else spec.validation
        if data.WhichOneof("source") == "upload":
            path = fetch_upload(self.server, data.upload, cache_dir())
            sha, _, suffix = data.upload.partition(".")
            files = [(path, f"upload {sha[:UPLOAD_LABEL_CHARS]}.{suffix}")]
        else:
            roots = [Path(root) for root in self.roots]
            files = [(path, _label(path, roots)) for path in find_files(data.path, roots)]
        return describe(data, spec, files, training=self.training)


@dataclass(frozen=True)
class Failure:
    """A DataError as a value."""

    message: str
    error_type: service_pb2.ErrorType.ValueType


@dataclass(frozen=True)
class Outline:
    """What the fleet needs to know of a data set."""

    num_rows: int
    can_be_entered: bool


def outline(place: Place) -> Outline | Failure:
    """Describe a data set."""
    try:
        dataset = place.dataset()
    except DataError as error:
        return Failure(error.message, error.error_type)
    return Outline(dataset.num_rows, dataset.can_be_entered)


def load(place: Place, indices: Sequence[int]) -> tuple[Any, ...]:
    """Return the shards, and last a Failure or None. After a failure, the shards are None."""
    try:
        dataset = place.dataset()
        return (*(dataset.shard(index) for index in indices), None)
    except DataError as error:
        return (*(None for _ in indices), Failure(error.message, error.error_type))


_outline: Any = ray.remote(num_cpus=0)(outline)
_load: Any = ray.remote(num_cpus=0)(load)


def start_outline(place: Place) -> Any:
    """Start a task; return the reference of an Outline or Failure."""
    return _outline.remote(place)


def start_loading(place: Place, num_shards: int, *, can_be_entered: bool) -> tuple[list[Any], list[Any]]:
    """Start the tasks that load all shards. Return the references of the shards, and those of their failures.

    A format that cannot be entered in the middle is read by one task, in one pass.
    """
    batches = [[index] for index in range(num_shards)] if can_be_entered else [list(range(num_shards))]
    shards: list[Any] = []
    failures: list[Any] = []
    for indices in batches:
        *loaded, failure = _load.options(num_returns=len(indices) + 1).remote(place, indices)
        shards += loaded
        failures.append(failure)
    return shards, failures


def _label(path: Path, roots: Sequence[Path]) -> str:
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return str(path.relative_to(root)) if root is not None else path.name
