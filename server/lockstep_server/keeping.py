"""When a version is kept, and what: its digest at the end of an epoch, a checkpoint every so many steps or seconds."""

from typing import Any

import numpy.typing as npt

from lockstep_proto.v1 import job_pb2
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.effects import Keep
from lockstep_server.progress import Progress
from lockstep_server.records import KeptVersion
from lockstep_server.update import ParameterUpdate

Array = npt.NDArray[Any]


class Keeping:
    """Decides for one attempt. One checkpoint is written at a time; one that comes due meanwhile is left out.

    `best` are the parameters with the lowest validation loss so far.
    """

    def __init__(
        self,
        spec: job_pb2.Checkpoints,
        default_s: float,
        update: ParameterUpdate,
        progress: Progress,
        best: Array | None,
        now: float,
    ) -> None:
        self._every_steps = spec.every_steps if spec.HasField("every_steps") else None
        self._every_s = spec.every_s if spec.HasField("every_s") else default_s
        self._update = update
        self._progress = progress
        self.best = best
        self._version = update.version  # the last one that was looked at
        self._checkpoint_s = now
        self._writing = False

    def snapshot(self) -> Checkpoint:
        """Return the present version, whole, whatever has arrived of the next."""
        return Checkpoint(
            version=self._update.version,
            epoch=self._progress.epoch,
            step_in_epoch=self._progress.step_in_epoch,
            parameters=self._update.parameters,
            optimizer_state=self._update.optimizer_state(),
            num_updates=self._update.num_updates,
            best=self.best,
            progress=self._progress.to_dict(),
        )

    def look(self, now: float) -> list[Keep]:
        """Keep a new version where that is due; one that is to be evaluated is kept when it has been."""
        version = self._update.version
        if self._progress.evaluation_due or version == self._version:
            return []
        self._version = version
        ends_epoch = self._progress.step_in_epoch == 0
        checkpoint = self.snapshot() if self._take_checkpoint(version, now) else None
        if not ends_epoch and checkpoint is None:
            return []
        return [Keep(KeptVersion(version, ends_epoch, self._update.parameters, checkpoint))]

    def written(self) -> None:
        """Take note that the last checkpoint is on disk, or has failed."""
        self._writing = False

    def _take_checkpoint(self, version: int, now: float) -> bool:
        """Whether a checkpoint of this version is due; if so it counts as being written."""
        by_steps = self._every_steps is not None and version % self._every_steps == 0
        due = not self._writing and (by_steps or now - self._checkpoint_s >= self._every_s)
        if due:
            self._writing, self._checkpoint_s = True, now
        return due
