"""One update of the parameters, chunk by chunk: divide, penalties, norm, clip, optimizer.

The version that workers compute on, and the optimizer state that belongs to it, stay whole until every chunk of the
next version is there: a step can be abandoned at any time. The parameters of a version are one flat vector, written
once and shared by all: by the messages that carry its chunks, by workers on the same machine, by who keeps it. Where
parameters travel as bfloat16, there is one of them rounded, too.

What leaves the range of numbers raises a flag of the processor, which numpy looks at after each operation; the values
themselves are looked at only then.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, failpoints
from lockstep_proto.codec import ParameterChunk
from lockstep_proto.layout import Layout
from lockstep_proto.v1 import job_pb2
from lockstep_server import norms, penalties
from lockstep_server.block_pieces import Piece, pieces_of
from lockstep_server.chunks import chunking_of
from lockstep_server.optimizers import State, optimizer_from_spec
from lockstep_server.parameters import Draft
from lockstep_server.room import Room, own_memory
from lockstep_server.schedules import learning_rates

Array = npt.NDArray[Any]


class NotFiniteError(ArithmeticError):
    """A gradient has an element that is not finite."""


class OverflowedError(ArithmeticError):
    """An update would make a parameter that is not finite."""


class ParameterUpdate:
    """The parameters and optimizer state of one version, and what there is of the next."""

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        *,
        attempt: int,
        version: int,
        parameters: Array,
        state: State | None,
        num_updates: int,
        far: bool = False,
        room: Room = own_memory,
    ) -> None:
        self._spec = spec
        self._room = room
        self.layout = Layout.from_spec(spec)
        self.chunking = chunking_of(spec, self.layout, far=far)
        self._attempt = attempt
        self.version = version
        self.num_updates = num_updates  # that the optimizer state has seen
        self._optimizer = optimizer_from_spec(spec.optimizer)
        self._learning_rates = learning_rates(spec)
        self._state = state or self._optimizer.init(self.layout.num_parameters, self.layout.dtype)
        self._next_state = _like(self._state)
        self._state_is_shared = False  # with a checkpoint that is being written
        self.rounds = bfloat16.travels(spec)  # what goes to workers
        self._clip_norm = spec.clip_norm if spec.HasField("clip_norm") else None
        self._pieces = pieces_of(self.layout, self.chunking)  # of each chunk
        largest = min(norms.BLOCK, self.layout.num_parameters)
        self._gradient = np.empty(self.layout.num_parameters if self._clip_norm else largest, self.layout.dtype)
        self._squares = norms.BlockSquares(self.layout.num_parameters)
        self._penalties = [0.0] * len(self._squares.sums)  # of the blocks
        self._flagged = False  # by an operation whose result is not finite
        self._finite = all(np.isfinite(part).all() for part in (parameters, *self._state.values()))
        self.measure_layers = False
        self.gradient_norms: list[float] = []  # of each layer, where that was wanted
        self.parameter_norms: list[float] = []
        self._draft(version)
        for i in range(self.chunking.num_chunks):
            self._next.values(i)[:] = parameters[slice(*self.chunking.range(i))]
            self._made(i)
        self._take_over()
        self._begin()

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk of a gradient, as it travels."""
        dtype = bfloat16.DTYPE if self.rounds else self.layout.dtype
        return min(self.chunking.chunk_elements, self.layout.num_parameters) * dtype.itemsize

    def _draft(self, version: int) -> None:
        """Begin to make a version."""
        self._next = self._next_rounded = Draft(self.chunking, self.layout.dtype, self._attempt, version, self._room)
        if self.rounds:
            self._next_rounded = Draft(self.chunking, bfloat16.DTYPE, self._attempt, version, self._room)

    def _take_over(self) -> None:
        """Make the parameters of the next version, which are whole, the present ones."""
        self.parameters = self._next.whole()  # flat
        self.messages = self._next_rounded.messages  # the present version as workers compute steps from it
        self.master_messages = self._next.messages  # and evaluations

    def _begin(self) -> None:
        """Begin the next version. What has gone out of one that was begun before stays as it is."""
        self._draft(self.version + 1)
        self._gradient_squares = [0.0] * self.layout.num_layers
        self._parameter_squares = [0.0] * self.layout.num_layers
        self._squares.clear()
        self.learning_rate = self._learning_rates(self.version)

    def apply(self, chunk_index: int, gradient_sum: Array, weight: float) -> ParameterChunk | None:
        """Update one chunk by its summed gradient. Return the new chunk's message, or None when clipping must wait.

        Raises NotFiniteError or OverflowedError; the present version and its optimizer state stay as they are.
        """
        failpoints.hit("server.update.chunk")
        with self._watched():
            return self._applied(chunk_index, gradient_sum, weight)

    def _applied(self, chunk_index: int, gradient_sum: Array, weight: float) -> ParameterChunk | None:
        w, out = self._present(chunk_index), self._next.values(chunk_index)
        divisor = self.layout.dtype.type(weight)
        penalty = self._spec.penalty
        for piece in self._pieces[chunk_index]:
            g = self._gradient_of(piece)
            np.divide(gradient_sum[piece.in_chunk], divisor, out=g)
            if penalty.l1 or penalty.l2:
                penalties.add_gradient(g, w[piece.in_chunk], piece.weights, penalty.l1, penalty.l2)
            self._square(piece, g)
            if self._clip_norm is None:
                self._update(piece, out, w, g)
        return None if self._clip_norm else self._made(chunk_index)

    def _square(self, piece: Piece, g: Array) -> None:
        """Take a piece of the gradient into the norms, if it is finite."""
        block, whole = piece.block, self._squares.put(piece.part.start, g)
        if self.measure_layers:
            self._measure(self._gradient_squares, piece, self._squares.last)
        if whole is None:
            self._check(float(np.add.reduce(self._squares.last)), piece.part, self._squares.last)
            return
        self._check(self._squares.sums[block.number], block.part, whole)
        penalty = self._spec.penalty
        if penalty.l1 or penalty.l2:
            w = self.parameters[block.part]
            self._penalties[block.number] = penalties.block_value(w, block.weights, penalty.l1, penalty.l2)

    def finish(self) -> list[ParameterChunk]:
        """Update all chunks that have waited for the global norm. Return their messages. Raises OverflowedError."""
        return [] if self._clip_norm is None else self._clip(self._clip_norm)

    def restart(self) -> None:
        """Forget what there is of the next version; its step is computed again."""
        self._begin()

    def commit(self) -> None:
        """Make the next version, which is whole, the present one."""
        if self.measure_layers:
            self.gradient_norms = [math.sqrt(squares) for squares in self._gradient_squares]
            self.parameter_norms = [math.sqrt(squares) for squares in self._parameter_squares]
        self._take_over()
        spare = _like(self._state) if self._state_is_shared else self._state
        self._state, self._next_state, self._state_is_shared = self._next_state, spare, False
        self.version += 1
        self.num_updates += 1
        self._begin()

    def gradient_norm(self) -> float:
        """Return ‖∇Q‖ of the step, with penalties, before clipping. All chunks must have been applied."""
        return norms.norm(self._squares.sums)

    def penalty(self) -> float:
        """Return the penalties' share of Q at the present version. All chunks must have been applied."""
        return norms.total(self._penalties)

    def optimizer_state(self) -> State:
        """Return the optimizer state of the present version. Its arrays are not written any more."""
        self._state_is_shared = True
        return dict(self._state)

    @property
    def next_messages(self) -> list[ParameterChunk]:
        """What there is of the next version as workers compute steps from it."""
        return self._next_rounded.messages

    def _present(self, chunk_index: int) -> Array:
        """Return a chunk of the present version."""
        lo, hi = self.chunking.range(chunk_index)
        return self.parameters[lo:hi]

    def _gradient_of(self, piece: Piece) -> Array:
        """Return where the gradient of a piece is made: all are kept only where clipping has to wait for the norm."""
        return self._gradient[piece.part] if self._clip_norm else self._gradient[: piece.part.stop - piece.part.start]

    def _clip(self, clip_norm: float) -> list[ParameterChunk]:
        norm = self.gradient_norm()
        with self._watched():
            if norm > clip_norm:
                self._gradient *= self.layout.dtype.type(clip_norm / norm)
            return [self._updated(chunk_index) for chunk_index in range(len(self._pieces))]

    def _updated(self, chunk_index: int) -> ParameterChunk:
        w, out = self._present(chunk_index), self._next.values(chunk_index)
        for piece in self._pieces[chunk_index]:
            self._update(piece, out, w, self._gradient_of(piece))
        return self._made(chunk_index)

    def _update(self, piece: Piece, out: Array, w: Array, g: Array) -> None:
        out = out[piece.in_chunk]
        state = {name: values[piece.part] for name, values in self._state.items()}
        new = {name: values[piece.part] for name, values in self._next_state.items()}
        rate = self.learning_rate
        self._flagged = not self._finite
        self._optimizer.update(out, w[piece.in_chunk], g, state, new, rate, self.num_updates, piece.weights)
        if self._flagged and not np.isfinite(out).all():
            raise OverflowedError(f"the update of layer {self._layer_of(piece.part, out)} leaves the range of numbers")
        if self.measure_layers:
            self._measure(self._parameter_squares, piece, np.square(out, dtype=np.float64))

    def _made(self, chunk_index: int) -> ParameterChunk:
        """Make the messages of a chunk whose values have been written. Return the one that goes to workers."""
        message = self._next.make(chunk_index)
        if self.rounds:
            bfloat16.pack_rounded(self._next.values(chunk_index), self._next_rounded.values(chunk_index))
            message = self._next_rounded.make(chunk_index)
        return message

    def _watched(self) -> "np.errstate":
        """Take note of operations whose results are not finite."""
        return np.errstate(all="call", under="ignore", call=self._flag)

    def _flag(self, kind: str, flag: int) -> None:
        self._flagged = True

    def _check(self, total: float, part: slice, squares: npt.NDArray[np.float64]) -> None:
        """Raise NotFiniteError if the sum of the squares of a part of the gradient is not finite."""
        if not math.isfinite(total):
            raise NotFiniteError(f"the gradient of layer {self._layer_of(part, squares)} is not finite")

    def _measure(self, layers: list[float], piece: Piece, squares: npt.NDArray[np.float64]) -> None:
        """Add a piece's share to the squares of each layer; for people, not for the mathematics."""
        for layer, part in piece.layers:
            layers[layer] += float(np.add.reduce(squares[part]))

    def _layer_of(self, part: slice, values: Array) -> int:
        """Return the layer of the first value of a part of the flat vector that is not finite."""
        return self.layout.layer_of(part.start + int(np.argmin(np.isfinite(values))))


def _like(state: State) -> State:
    return {name: np.empty_like(values) for name, values in state.items()}
