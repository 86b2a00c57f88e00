"""The files of one job: its checkpoints while it runs, its models once it has ended. All methods block on the disk."""

import shutil
from collections.abc import Callable
from pathlib import Path

from lockstep_proto import failpoints
from lockstep_proto.layout import Layout, digest
from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.job_pb2 import JobSpec
from lockstep_server import checkpoints
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.disk import storage_errors
from lockstep_server.errors import NoModelError

Which = service_pb2.WhichModel


class JobFiles:
    """The directory of one job; made when first written to."""

    def __init__(self, directory: Path, *, keep_checkpoints: int) -> None:
        self._directory = directory
        self._keep = keep_checkpoints

    def write_checkpoint(self, spec: JobSpec, checkpoint: Checkpoint) -> int:
        """Write a checkpoint, drop the oldest; returns its size in bytes. Raises DiskFullError or StorageError."""
        path = self._checkpoints / f"{checkpoint.version:012d}.safetensors"
        with storage_errors(f"write checkpoint {path.name}"):
            failpoints.hit("server.checkpoint.begun")
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoints.write(path, spec, checkpoint)
            failpoints.hit("server.checkpoint.written")
            for old in self._newest_first()[self._keep :]:
                old.unlink()
            return path.stat().st_size

    def newest_checkpoint(self, damaged: Callable[[str], None]) -> Checkpoint | None:
        """The newest good checkpoint, or None; `damaged` is told of each that is not."""
        for path in self._newest_first():
            try:
                return checkpoints.read(path)
            except (checkpoints.CheckpointError, OSError) as error:
                damaged(f"checkpoint {path.name} cannot be used ({error}); going back to the one before it")
        return None

    def write_models(self, spec: JobSpec, checkpoint: Checkpoint) -> str:
        """Save the last and the best parameters, then drop the checkpoints; returns the digest of the last.

        Raises DiskFullError or StorageError; the checkpoints then stay.
        """
        with storage_errors("save the model"):
            failpoints.hit("server.models.begun")
            self._directory.mkdir(parents=True, exist_ok=True)
            checkpoints.write_model(self._path(Which.WHICH_MODEL_LAST), spec, checkpoint.parameters)
            if checkpoint.best is not None:
                checkpoints.write_model(self._path(Which.WHICH_MODEL_BEST), spec, checkpoint.best)
            failpoints.hit("server.models.written")
            shutil.rmtree(self._checkpoints, ignore_errors=True)
        return digest(Layout.from_spec(spec), checkpoint.parameters)

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
        freed = sum(path.stat().st_size for path in files)
        with storage_errors(f"delete {self._directory}"):
            if self._directory.exists():
                shutil.rmtree(self._directory)
        return freed

    @property
    def _checkpoints(self) -> Path:
        return self._directory / "checkpoints"

    def _newest_first(self) -> list[Path]:
        return sorted(self._checkpoints.glob("*.safetensors"), reverse=True)

    def _path(self, which: Which.ValueType) -> Path:
        return self._directory / ("best.safetensors" if which == Which.WHICH_MODEL_BEST else "model.safetensors")
