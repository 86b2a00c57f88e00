"""One update of the parameters, chunk by chunk: divide, penalties, norm, clip, optimizer.

The version that workers compute on, and the optimizer state that belongs to it, stay whole until every chunk of the
next version is there: a step can be abandoned at any time. The parameters of a version are the encoded messages that
carry them, one immutable `bytes` a chunk, shared by all streams.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import codec, failpoints
from lockstep_proto.layout import Chunking, Layout, clip_slices
from lockstep_proto.v1 import job_pb2
from lockstep_server import norms, penalties
from lockstep_server.optimizers import State, optimizer_from_spec
from lockstep_server.parameters import Parameters
from lockstep_server.schedules import learning_rate

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
class _Chunk:
    """The views that belong to one chunk, made once."""

    lo: int
    hi: int
    weights: list[slice]


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
        self._state = state or self._optimizer.init(self.layout.num_parameters, self.layout.dtype)
        self._next_state = {name: np.empty_like(values) for name, values in self._state.items()}
        self._clip_norm = spec.clip_norm if spec.HasField("clip_norm") else None
        ranges = [self.chunking.range(i) for i in range(self.chunking.num_chunks)]
        self._chunks = [_Chunk(lo, hi, clip_slices(self.layout.weight_slices, lo, hi)) for lo, hi in ranges]
        size = self.layout.num_parameters if self._clip_norm else max(chunk.hi - chunk.lo for chunk in self._chunks)
        self._gradient = np.empty(size, self.layout.dtype)
        self._out = np.empty(max(chunk.hi - chunk.lo for chunk in self._chunks), self.layout.dtype)
        self._finite = np.empty(self._out.size, np.bool_)
        messages = [self._encode(version, i, parameters[chunk.lo : chunk.hi]) for i, chunk in enumerate(self._chunks)]
        self.parameters = Parameters(self.layout, messages)
        self.measure_layers = False
        self.layer_norms: list[float] = []
        self._begin()

    def _begin(self) -> None:
        num_chunks = len(self._chunks)
        self.next_messages: list[bytes | None] = [None] * num_chunks
        self._layer_squares = [0.0] * self.layout.num_layers
        self._squares: list[list[float]] = [[] for _ in range(num_chunks)]
        self._penalties: list[list[float]] = [[] for _ in range(num_chunks)]
        self.learning_rate = learning_rate(self._spec, self.version)

    @np.errstate(all="ignore")  # what is not finite is found below
    def apply(self, chunk_index: int, gradient_sum: Array, weight: float) -> bytes | None:
        """Update one chunk by its summed gradient. Return the new chunk's message, or None when clipping must wait.

        Raises NotFiniteError or OverflowedError; the present version and its optimizer state stay as they are.
        """
        failpoints.hit("server.update.chunk")
        chunk = self._chunks[chunk_index]
        w = self.parameters.chunk(chunk_index)
        g = self._gradient[chunk.lo : chunk.hi] if self._clip_norm else self._gradient[: chunk.hi - chunk.lo]
        np.divide(gradient_sum, self.layout.dtype.type(weight), out=g)
        penalty = self._spec.penalty
        if penalty.l1 or penalty.l2:
            penalties.add_gradient(g, w, chunk.weights, penalty.l1, penalty.l2)
            self._penalties[chunk_index] = penalties.block_values(w, chunk.weights, penalty.l1, penalty.l2)
        squares = norms.block_squares(g)
        if not np.isfinite(squares).all():
            raise NotFiniteError(self._name_not_finite(chunk, g))
        self._squares[chunk_index] = squares
        if self.measure_layers:
            self._measure(chunk, g)
        return None if self._clip_norm else self._update(chunk_index, w, g)

    @np.errstate(all="ignore")
    def finish(self) -> list[bytes]:
        """Update all chunks that have waited for the global norm. Return their messages. Raises OverflowedError."""
        if self._clip_norm is None:
            return []
        norm = self.gradient_norm()
        if norm > self._clip_norm:
            self._gradient *= self.layout.dtype.type(self._clip_norm / norm)
        views = ((i, self.parameters.chunk(i), self._gradient[c.lo : c.hi]) for i, c in enumerate(self._chunks))
        return [self._update(i, w, g) for i, w, g in views]

    def restart(self) -> None:
        """Forget what there is of the next version; its step is computed again."""
        self._begin()

    def commit(self) -> None:
        """Make the next version, which is whole, the present one."""
        if self.measure_layers:
            self.layer_norms = [math.sqrt(squares) for squares in self._layer_squares]
        self.parameters = Parameters(self.layout, [message for message in self.next_messages if message is not None])
        self._state, self._next_state = self._next_state, self._state
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
        """Return a copy of the optimizer state of the present version."""
        return {name: values.copy() for name, values in self._state.items()}

    def _measure(self, chunk: _Chunk, g: Array) -> None:
        """Add the chunk's share to the squares of each layer's gradient; for people, not for the mathematics."""
        for i, layer in enumerate(self.layout.layer_slices):
            part = g[max(layer.start - chunk.lo, 0) : max(layer.stop - chunk.lo, 0)]
            self._layer_squares[i] += float(np.add.reduce(np.square(part, dtype=np.float64)))

    def _update(self, chunk_index: int, w: Array, g: Array) -> bytes:
        chunk = self._chunks[chunk_index]
        state = {name: values[chunk.lo : chunk.hi] for name, values in self._next_state.items()}
        for name, values in state.items():
            values[:] = self._state[name][chunk.lo : chunk.hi]
        out = self._out[: chunk.hi - chunk.lo]
        self._optimizer.update(out, w, g, state, self.learning_rate, self.num_updates, chunk.weights)
        if not np.isfinite(out, out=self._finite[: out.size]).all():
            element = chunk.lo + int(np.argmin(self._finite[: out.size]))
            raise OverflowedError(f"the update of layer {self.layout.layer_of(element)} leaves the range of numbers")
        message = self._encode(self.version + 1, chunk_index, out)
        self.next_messages[chunk_index] = message
        return message

    def _encode(self, version: int, chunk_index: int, values: Array) -> bytes:
        return codec.encode_parameter_chunk(codec.ParameterChunk(self._attempt, version, chunk_index, values.data))

    def _name_not_finite(self, chunk: _Chunk, g: Array) -> str:
        element = chunk.lo + int(np.argmin(np.isfinite(g)))
        return f"the gradient of layer {self.layout.layer_of(element)} is not finite"
