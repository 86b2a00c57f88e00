"""A job at one version as its run hands it out: nothing in it is written any more, so it costs no copy."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from lockstep_server.checkpoints import Checkpoint
from lockstep_server.parameters import Parameters

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a checkpoint is made of; its fields are those of a Checkpoint."""

    version: int
    epoch: int
    step_in_epoch: int
    parameters: Parameters
    optimizer_state: dict[str, Array]
    num_updates: int
    best: Parameters | Array | None
    progress: dict[str, Any]

    def checkpoint(self) -> Checkpoint:
        """Return the checkpoint: the parameters are copied, in whichever thread this is called."""
        best = self.best.flat() if isinstance(self.best, Parameters) else self.best
        return Checkpoint(**(vars(self) | {"parameters": self.parameters.flat(), "best": best}))
