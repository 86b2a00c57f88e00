"""When a version is kept: its digest at the end of an epoch, a checkpoint every so many steps or seconds."""

from lockstep_proto.v1 import job_pb2


class Keeping:
    """Decides for one attempt. One checkpoint is written at a time; one that comes due meanwhile is left out."""

    def __init__(self, spec: job_pb2.Checkpoints, default_s: float, version: int, now: float) -> None:
        self._every_steps = spec.every_steps if spec.HasField("every_steps") else None
        self._every_s = spec.every_s if spec.HasField("every_s") else default_s
        self._version = version
        self._checkpoint_s = now
        self._writing = False

    def is_new(self, version: int) -> bool:
        """Whether this version has yet to be looked at; it counts as looked at then."""
        new, self._version = version != self._version, version
        return new

    def take_checkpoint(self, version: int, now: float) -> bool:
        """Whether a checkpoint of this version is due; if so it counts as being written."""
        by_steps = self._every_steps is not None and version % self._every_steps == 0
        due = not self._writing and (by_steps or now - self._checkpoint_s >= self._every_s)
        if due:
            self._writing, self._checkpoint_s = True, now
        return due

    def written(self) -> None:
        """Take note that the last checkpoint is on disk, or has failed."""
        self._writing = False
