"""Takes chunks in: into the tree of their round, and from its root into the update of the parameters."""

import math

import numpy as np

from lockstep_proto import bfloat16
from lockstep_proto.codec import NodeChunk, ParameterChunk
from lockstep_proto.v1 import job_pb2
from lockstep_server.reduction import Reduction, Value
from lockstep_server.rounds import EVALUATE, STEP, Kind, Round, check_size
from lockstep_server.update import NotFiniteError, OverflowedError, ParameterUpdate

_NO_VALUES = (0,)  # the sizes of the chunks of a node in an evaluation


class StepError(ArithmeticError):
    """A step cannot be applied, whoever computes it."""


class Intake:
    """The trees of all rounds of one attempt, and how chunks get into them."""

    def __init__(self, spec: job_pb2.JobSpec, attempt: int, update: ParameterUpdate) -> None:
        self._attempt = attempt
        self._update = update
        self.wire_dtype = bfloat16.DTYPE if update.rounds else update.layout.dtype
        ranges = map(update.chunking.range, range(update.chunking.num_chunks))
        self._sizes = [hi - lo for lo, hi in ranges]  # of the chunks
        self._steps = Reduction(spec.shards, update.chunking.num_chunks, packed=update.rounds)
        self._whole_nodes = Reduction(spec.shards, 1)  # of rounds in which a node has no gradient

    def begin(self, kind: Kind) -> Reduction:
        """Return the trees of a new round, empty."""
        reduction = self._steps if kind == STEP else self._whole_nodes
        reduction.reset()
        return reduction

    def wants(self, chunk: NodeChunk, current: Round) -> bool:
        """Whether a chunk belongs to the round."""
        wanted = STEP if len(chunk.data) else EVALUATE
        return chunk.attempt == self._attempt and chunk.step == current.version and current.kind == wanted

    def put(self, chunk: NodeChunk, current: Round) -> Value | None:
        """Take in a chunk of the round. Return the root if it completes that.

        Raises DuplicateValueError for a value that is known already, ValueError for one that cannot be.
        """
        gradient = np.frombuffer(chunk.data, self.wire_dtype)
        check_size(chunk, gradient.size, _NO_VALUES if current.evaluates else self._sizes)
        return current.reduction.put(chunk.node, chunk.chunk_index, chunk.sums, gradient)

    def use(self, root: Value, chunk_index: int, current: Round) -> list[ParameterChunk]:
        """Do what the root of a chunk is for. Return the messages that come of it, those of chunks of the next version.

        Raises NotFiniteError or StepError; the present version stays as it is.
        """
        if current.sums is None:
            if root.sums.weight <= 0 and not current.evaluates:
                raise StepError(f"step {current.version}: the sample weights of its rows are all 0")
            if not math.isfinite(root.sums.loss):
                raise NotFiniteError("the loss is not finite")
            current.sums = root.sums
        if current.evaluates:
            current.whole = True
            return []
        try:
            message = self._update.apply(chunk_index, root.gradient, root.sums.weight)
            current.reduction.release(root)
            current.whole = current.reduction.complete
            others = self._update.finish() if current.whole else []
        except OverflowedError as error:
            raise StepError(f"step {current.version}: {error}; try a smaller learning rate") from error
        return others if message is None else [message, *others]
