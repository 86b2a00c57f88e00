"""Finds out what is not finite: the shards of a step are computed again, leaf by leaf, and never reach the parameters.

A step whose shards are all finite when they are examined is computed once more. If it is not finite again, then their
sum is not, though each of them is.
"""

import contextlib
from typing import Any

import numpy as np

from lockstep_proto import tree
from lockstep_proto.codec import Sums
from lockstep_proto.v1 import training_pb2
from lockstep_server import words
from lockstep_server.crew import WorkerView
from lockstep_server.handout import Handout
from lockstep_server.progress import Plan
from lockstep_server.reduction import DuplicateValueError
from lockstep_server.rounds import Round


class Examination:
    """The examinations of one attempt."""

    def __init__(self, plan: Plan, handout: Handout, wire_dtype: np.dtype[Any]) -> None:
        self._plan = plan
        self._handout = handout
        self._nothing = np.empty(0, wire_dtype)  # the value of a node that has been examined
        self._cleared = -1  # the version whose step was not finite though all its shards are

    def refuse(self, current: Round, problem: str) -> str | None:
        """Return why the job fails for what is not finite in this round; None if its shards are to be examined."""
        if current.evaluates:
            return f"the validation loss at version {current.version} is not finite"
        if self._cleared == current.version:
            return f"step {current.version}: {problem}, that of each shard is: their sum leaves the range of numbers"
        return None

    def found(self, worker: WorkerView, finding: training_pb2.Finding, current: Round, now: float) -> None:
        """Take in what a worker has found on some shards."""
        if finding.HasField("shard"):
            found = (finding.shard, finding.layer)
            current.found = min(current.found or found, found)
        num_shards = self._plan.num_shards
        for node in (node for part in finding.ranges for node in tree.top_nodes(part.lo, part.hi, num_shards)):
            self._handout.arrived(worker, now)
            with contextlib.suppress(DuplicateValueError):  # another has examined it, too
                current.reduction.put(node, 0, Sums(0.0, 0.0, 0.0), self._nothing)

    def conclude(self, current: Round) -> str | None:
        """Return why the job fails now that all shards have been examined; None if the step is to be computed again."""
        if current.found is not None:
            return words.not_finite(current.version, *current.found, self._plan)
        self._cleared = current.version
        return None
