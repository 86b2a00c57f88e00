"""The files of one job: its checkpoints, and its models once it has ended. All methods block on the disk."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lockstep_proto import failpoints
from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.job_pb2 import JobSpec
from lockstep_server import checkpoints
from lockstep_server.checkpoints import Checkpoint, Description, Origin
from lockstep_server.disk import storage_errors, sync_directory
from lockstep_server.errors import NoModelError
from lockstep_server.tensor_files import TEMPORARY, TensorFileError

Which = service_pb2.WhichModel
NO_LINKS = frozenset({errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})  # what a disk may say
DAMAGED = ".damaged"  # put behind the name of a checkpoint that cannot be used; a person may look at it


class JobFiles:
    """The directory of one job; made when first written to."""

    def __init__(self, directory: Path, *, keep_checkpoints: int) -> None:
        self._directory = directory
        self._keep = keep_checkpoints

    def write_checkpoint(self, origin: Origin, checkpoint: Checkpoint, parameters_digest: str) -> int:
        """Write a checkpoint, drop what is superfluous; returns its size in bytes.

        Raises DiskFullError or StorageError.
        """
        path = self.checkpoint(checkpoint.version)
        with storage_errors(f"write checkpoint {path.name}"):
            failpoints.hit("server.checkpoint.begun")
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoints.write(path, origin, checkpoint, parameters_digest)
            failpoints.hit("server.checkpoint.written")
            for old in superfluous(self.checkpoints(), self._keep):
                self.checkpoint(old.version).unlink()
            return path.stat().st_size

    def checkpoints(self) -> list[Description]:
        """The checkpoints that can be described, oldest first."""
        found = []
        for path in reversed(self._newest_first()):
            with contextlib.suppress(TensorFileError, OSError):  # its reader will name it
                found.append(checkpoints.describe(path))
        return found

    def checkpoint(self, version: int) -> Path:
        """Where the checkpoint of a version is, or would be."""
        return self._checkpoints / f"{version:012d}.safetensors"

    @property
    def start(self) -> Path:
        """What the job starts from, if that is another job's file."""
        return self._directory / "start.safetensors"

    def hold_start(self, source: Path) -> None:
        """Hold another job's file, whatever becomes of that job.

        Raises FileNotFoundError if it is gone, DiskFullError or StorageError.
        """
        with storage_errors(f"hold {source}", but=(FileNotFoundError,)):
            self._directory.mkdir(parents=True)
            try:
                _link(source, self.start)
                sync_directory(self._directory)
                sync_directory(self._directory.parent)
            except OSError:
                shutil.rmtree(self._directory, ignore_errors=True)
                raise

    def drop_start(self) -> None:
        """Let go of what `hold_start` held: the job has ended. Raises StorageError."""
        with storage_errors(f"remove {self.start}"):
            self.start.unlink(missing_ok=True)

    def newest_checkpoint(self, damaged: Callable[[str], None]) -> Checkpoint | None:
        """The newest good checkpoint, or None; `damaged` is told of each that is not.

        What a killed server left half written is removed.
        """
        for leftover in self._checkpoints.glob(TEMPORARY):
            leftover.unlink(missing_ok=True)
        for path in self._newest_first():
            try:
                return checkpoints.read(path)
            except (TensorFileError, OSError) as error:
                damaged(f"checkpoint {path.name} cannot be used ({error}); going back to the one before it")
                if isinstance(error, TensorFileError):  # else it may be readable another time
                    path.rename(path.with_name(path.name + DAMAGED))
        return None

    def write_models(self, spec: JobSpec, checkpoint: Checkpoint) -> None:
        """Save the last and the best parameters. Raises DiskFullError or StorageError."""
        with storage_errors("save the model"):
            failpoints.hit("server.models.begun")
            self._directory.mkdir(parents=True, exist_ok=True)
            checkpoints.write_model(self._path(Which.WHICH_MODEL_LAST), spec, checkpoint.parameters)
            if checkpoint.best is not None:
                checkpoints.write_model(self._path(Which.WHICH_MODEL_BEST), spec, checkpoint.best)
            failpoints.hit("server.models.written")

    def model(self, which: Which.ValueType) -> Path:
        """A saved model. Raises NoModelError."""
        path = self._path(which)
        if path.exists():
            return path
        if which == Which.WHICH_MODEL_BEST and self._path(Which.WHICH_MODEL_LAST).exists():
            raise NoModelError("the job has no best model: it was never evaluated on validation data; ask for the last")
        raise NoModelError("the job has no model yet; it is saved when the job ends")

    def delete(self) -> int:
        """Remove everything; returns the bytes given back."""
        files = [path for path in self._directory.rglob("*") if path.is_file()]
        freed = sum(path.stat().st_size for path in files if path.stat().st_nlink == 1)  # no other job holds it
        with storage_errors(f"delete {self._directory}"):
            if self._directory.exists():
                shutil.rmtree(self._directory)
        return freed

    @property
    def _checkpoints(self) -> Path:
        return self._directory / "checkpoints"

    def _newest_first(self) -> list[Path]:
        return sorted(self._checkpoints.glob("[0-9]*.safetensors"), reverse=True)

    def _path(self, which: Which.ValueType) -> Path:
        return self._directory / ("best.safetensors" if which == Which.WHICH_MODEL_BEST else "model.safetensors")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)


def superfluous(found: Sequence[Description], keep: int) -> list[Description]:
    """Those that are dropped: all but the newest `keep` and the first with the lowest validation loss."""
    evaluated = [one for one in found if one.validation_loss is not None]
    best = min(evaluated, key=lambda one: (one.validation_loss, one.version), default=None)
    kept = {one.version for one in sorted(found, key=lambda one: one.version)[-keep:]}
    return [one for one in found if one.version not in kept and one is not best]
