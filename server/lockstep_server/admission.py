"""What only the server can tell of a spec: whether what it names is there, and whether it fits this machine."""

import os
from pathlib import Path

from lockstep_proto.layout import Layout
from lockstep_proto.spec import Violation
from lockstep_proto.v1.job_pb2 import JobSpec
from lockstep_server.directory import Directory
from lockstep_server.errors import (
    InvalidRequestError,
    InvalidSpecError,
    JobNotFoundError,
    NoModelError,
    UploadNotFoundError,
)
from lockstep_server.job_files import JobFiles, Which
from lockstep_server.job_record import JobRecord
from lockstep_server.optimizers import optimizer_from_spec
from lockstep_server.uploads import Uploads


def missing_uploads(spec: JobSpec, uploads: Uploads) -> list[Violation]:
    """Return a violation for each upload that the server does not have; those it has stay for a while."""
    named = {
        "data.upload": spec.data.upload,
        "validation.upload": spec.validation.upload,
        "start_from.model": spec.start_from.model,
    }
    violations = []
    for path, upload_id in named.items():
        try:
            if upload_id:
                uploads.find(upload_id)
        except (UploadNotFoundError, InvalidRequestError) as error:
            violations.append(Violation(path, str(error)))
    return violations


def too_large(spec: JobSpec, memory_bytes: int | None = None) -> list[Violation]:
    """Return a violation if this machine (or one with so much memory) cannot hold the network.

    Two versions of the parameters and of the optimizer state are the least that training takes.
    """
    memory_bytes = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    layout = Layout.from_spec(spec)
    copies = 2 * (1 + len(optimizer_from_spec(spec.optimizer).state_names))
    needed = layout.num_parameters * layout.dtype.itemsize * copies
    if needed <= memory_bytes:
        return []
    message = (
        f"has {layout.num_parameters} parameters, which take {needed / 1e9:.1f} GB of the server's memory with their "
        f"optimizer state; it has {memory_bytes / 1e9:.1f} GB: make the layers smaller"
    )
    return [Violation("network", message)]


def find_source(spec: JobSpec, directory: Directory) -> JobRecord:
    """The job that `spec` starts from. Raises InvalidSpecError if there is none, or one of another shape."""
    try:
        source = directory.find(spec.start_from.job)
    except (InvalidRequestError, JobNotFoundError) as error:
        raise InvalidSpecError([Violation("start_from.job", str(error))]) from error
    there, here = Layout.from_spec(source.spec), Layout.from_spec(spec)
    if there != here:
        message = f"job {source.id} has the shape {_shape(there)}, this one has {_shape(here)}; they must be equal"
        raise InvalidSpecError([Violation("start_from.job", message)])
    return source


def settle_start(spec: JobSpec, source: JobRecord, files: JobFiles) -> Path:
    """Make explicit in `spec` which of the source's checkpoints it starts from; returns the file. Blocks on the disk.

    Raises InvalidSpecError. What is settled does not change any more: the result stays a function of the spec.
    """
    start = spec.start_from
    start.job = source.id
    if start.best:
        if not source.ended:
            raise _refused("best", f"job {source.id} has not ended, and its best may still change; give a version")
        try:
            return files.model(Which.WHICH_MODEL_BEST)
        except NoModelError as error:
            raise _refused("best", f"job {source.id}: {error}") from error
    versions = [kept.version for kept in files.checkpoints()]
    if not versions:
        raise _refused("job", f"job {source.id} has no checkpoint yet")
    if not start.HasField("version"):
        start.version = versions[-1]
    if start.version not in versions:
        kept = ", ".join(map(str, versions))
        raise _refused("version", f"job {source.id} keeps the checkpoints {kept}; got {start.version}")
    return files.checkpoint(start.version)


def _refused(field: str, message: str) -> InvalidSpecError:
    return InvalidSpecError([Violation(f"start_from.{field}", message)])


def _shape(layout: Layout) -> str:
    return f"{'-'.join(map(str, layout.sizes))} {layout.dtype.name}"
