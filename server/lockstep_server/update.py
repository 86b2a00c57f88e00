"""One update of the parameters, chunk by chunk: divide, penalties, norm, clip, optimizer.

The version that workers compute on, and the optimizer state that belongs to it, stay whole until every chunk of the
next version is there: a step can be abandoned at any time. The parameters of a version are the encoded messages that
carry them, one immutable `bytes` a chunk, shared by all streams. Where parameters travel as bfloat16, there are
messages of them rounded, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, codec, failpoints
from lockstep_proto.layout import Chunking, Layout, clip_slices
from lockstep_proto.v1 import job_pb2
from lockstep_server import norms, penalties
from lockstep_server.optimizers import State, optimizer_from_spec
from lockstep_server.parameters import Parameters
from lockstep_server.schedules import learning_rates

Array = npt.NDArray[Any]
CHUNK_BYTES = 1024 * 1024  # large enough that a message's cost in Python is small beside its bytes


class NotFiniteError(ArithmeticError):
    """A gradient has an element that is not finite."""


class OverflowedError(ArithmeticError):
    """An update would make a parameter that is not finite."""


def chunking_of(layout: Layout) -> Chunking:
    """Return how the flat vector is cut. Chunks are whole blocks of the norms."""
    return Chunking(layout.num_parameters, CHUNK_BYTES // layout.dtype.itemsize)


@dataclass(frozen=True)
class _Block:
    """A block of the norms: as much as stays in a core's cache while all is done that is to be done with it."""

    part: slice  # of the flat vector
    in_chunk: slice
    weights: list[slice]  # the parts in W^l, counted from its beginning


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
    ) -> None:
        self._spec = spec
        self.layout = Layout.from_spec(spec)
        self.chunking = chunking_of(self.layout)
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
        ranges = [self.chunking.range(i) for i in range(self.chunking.num_chunks)]
        self._blocks = [_blocks(self.layout, lo, hi) for lo, hi in ranges]  # of each chunk
        largest = max(hi - lo for lo, hi in ranges)
        self._gradient = np.empty(self.layout.num_parameters if self._clip_norm else norms.BLOCK, self.layout.dtype)
        self._out = np.empty(largest, self.layout.dtype)
        self._scratch = np.empty(min(largest, norms.BLOCK), np.float64)
        self._finite = np.empty(min(largest, norms.BLOCK), np.bool_)
        messages = [self._encode(version, i, parameters[lo:hi]) for i, (lo, hi) in enumerate(ranges)]
        self.parameters = Parameters(self.layout, messages)
        self.messages: Sequence[bytes] = messages  # the present version as workers compute steps from it
        if self.rounds:
            parts = (parameters[lo:hi].copy() for lo, hi in ranges)
            self.messages = [self._encode_rounded(version, i, part) for i, part in enumerate(parts)]
        self.measure_layers = False
        self.layer_norms: list[float] = []
        self._begin()

    def _begin(self) -> None:
        num_chunks = len(self._blocks)
        self._next_parameters: list[bytes | None] = [None] * num_chunks
        self.next_messages = self._next_parameters  # what there is of those to come
        if self.rounds:
            self.next_messages = [None] * num_chunks
        self._layer_squares = [0.0] * self.layout.num_layers
        self._squares: list[list[float]] = [[] for _ in range(num_chunks)]
        self._penalties: list[list[float]] = [[] for _ in range(num_chunks)]
        self.learning_rate = self._learning_rates(self.version)

    @np.errstate(all="ignore")  # what is not finite is found below
    def apply(self, chunk_index: int, gradient_sum: Array, weight: float) -> bytes | None:
        """Update one chunk by its summed gradient. Return the new chunk's message, or None when clipping must wait.

        Raises NotFiniteError or OverflowedError; the present version and its optimizer state stay as they are.
        """
        failpoints.hit("server.update.chunk")
        w = self.parameters.chunk(chunk_index)
        divisor = self.layout.dtype.type(weight)
        squares, values = self._squares[chunk_index], self._penalties[chunk_index]
        penalty = self._spec.penalty
        for block in self._blocks[chunk_index]:
            g = self._gradient_of(block)
            np.divide(gradient_sum[block.in_chunk], divisor, out=g)
            if penalty.l1 or penalty.l2:
                penalties.add_gradient(g, w[block.in_chunk], block.weights, penalty.l1, penalty.l2)
                values.append(penalties.block_value(w[block.in_chunk], block.weights, penalty.l1, penalty.l2))
            squares.append(norms.square_sum(g, self._scratch))
            if not math.isfinite(squares[-1]):
                raise NotFiniteError(f"the gradient of layer {self._layer_of(block, np.isfinite(g))} is not finite")
            if self.measure_layers:
                self._measure(block, g)
            if self._clip_norm is None:
                self._update(block, w, g)
        return None if self._clip_norm else self._made(chunk_index)

    def finish(self) -> list[bytes]:
        """Update all chunks that have waited for the global norm. Return their messages. Raises OverflowedError."""
        return [] if self._clip_norm is None else self._clip(self._clip_norm)

    def restart(self) -> None:
        """Forget what there is of the next version; its step is computed again."""
        self._begin()

    def commit(self) -> None:
        """Make the next version, which is whole, the present one."""
        if self.measure_layers:
            self.layer_norms = [math.sqrt(squares) for squares in self._layer_squares]
        self.parameters = Parameters(self.layout, [message for message in self._next_parameters if message is not None])
        self.messages = self.parameters.messages
        if self.rounds:
            self.messages = [message for message in self.next_messages if message is not None]
        spare = _like(self._state) if self._state_is_shared else self._state
        self._state, self._next_state, self._state_is_shared = self._next_state, spare, False
        self.version += 1
        self.num_updates += 1
        self._begin()

    def gradient_norm(self) -> float:
        """Return ‖∇Q‖ of the step, with penalties, before clipping. All chunks must have been applied."""
        return norms.norm(block for blocks in self._squares for block in blocks)

    def penalty(self) -> float:
        """Return the penalties' share of Q at the present version. All chunks must have been applied."""
        return norms.total(block for blocks in self._penalties for block in blocks)

    def optimizer_state(self) -> State:
        """Return the optimizer state of the present version. Its arrays are not written any more."""
        self._state_is_shared = True
        return dict(self._state)

    def _gradient_of(self, block: _Block) -> Array:
        """Return where the gradient of a block is made: all are kept only where clipping has to wait for the norm."""
        return self._gradient[block.part] if self._clip_norm else self._gradient[: block.part.stop - block.part.start]

    def _measure(self, block: _Block, g: Array) -> None:
        """Add the block's share to the squares of each layer's gradient; for people, not for the mathematics."""
        for i, layer in enumerate(self.layout.layer_slices):
            part = g[max(layer.start - block.part.start, 0) : max(layer.stop - block.part.start, 0)]
            self._layer_squares[i] += norms.square_sum(part, self._scratch)

    @np.errstate(all="ignore")
    def _clip(self, clip_norm: float) -> list[bytes]:
        norm = self.gradient_norm()
        if norm > clip_norm:
            self._gradient *= self.layout.dtype.type(clip_norm / norm)
        return [self._updated(chunk_index) for chunk_index in range(len(self._blocks))]

    def _updated(self, chunk_index: int) -> bytes:
        w = self.parameters.chunk(chunk_index)
        for block in self._blocks[chunk_index]:
            self._update(block, w, self._gradient_of(block))
        return self._made(chunk_index)

    def _update(self, block: _Block, w: Array, g: Array) -> None:
        out = self._out[block.in_chunk]
        state = {name: values[block.part] for name, values in self._state.items()}
        new = {name: values[block.part] for name, values in self._next_state.items()}
        rate = self.learning_rate
        self._optimizer.update(out, w[block.in_chunk], g, state, new, rate, self.num_updates, block.weights)
        finite = self._finite[: out.size]
        if not np.isfinite(out, out=finite).all():
            raise OverflowedError(f"the update of layer {self._layer_of(block, finite)} leaves the range of numbers")

    def _made(self, chunk_index: int) -> bytes:
        """Keep what `out` holds as a chunk of the next version. Return the message that goes to workers."""
        lo, hi = self.chunking.range(chunk_index)
        out, version = self._out[: hi - lo], self.version + 1
        message = self._next_parameters[chunk_index] = self._encode(version, chunk_index, out)
        if self.rounds:
            message = self.next_messages[chunk_index] = self._encode_rounded(version, chunk_index, out)
        return message

    def _encode(self, version: int, chunk_index: int, values: Array) -> bytes:
        return codec.encode_parameter_chunk(codec.ParameterChunk(self._attempt, version, chunk_index, values.data))

    def _encode_rounded(self, version: int, chunk_index: int, values: Array) -> bytes:
        """Encode values as bfloat16. They are rounded in place."""
        bfloat16.round_in_place(values)
        return self._encode(version, chunk_index, bfloat16.pack(values))

    def _layer_of(self, block: _Block, finite: Array) -> int:
        return self.layout.layer_of(block.part.start + int(np.argmin(finite)))


def _like(state: State) -> State:
    return {name: np.empty_like(values) for name, values in state.items()}


def _blocks(layout: Layout, lo: int, hi: int) -> list[_Block]:
    """Cut a chunk into the blocks of the norms."""
    return [
        _Block(slice(a, b), slice(a - lo, b - lo), clip_slices(layout.weight_slices, a, b))
        for a, b in ((a, min(a + norms.BLOCK, hi)) for a in range(lo, hi, norms.BLOCK))
    ]
