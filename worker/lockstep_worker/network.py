"""A feed-forward network: its shape, its activations, and prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.layout import Layout
from lockstep_proto.v1 import job_pb2
from lockstep_worker.activations import ACTIVATIONS, Activation

Array = npt.NDArray[Any]
BLOCK_ROWS = 8_192  # rows worked at a time: bounds memory; a constant of the mathematics


@dataclass(frozen=True)
class Network:
    """Layers l = 2..L on n_1 inputs; in lists, index 0 is layer 2."""

    layout: Layout
    activations: tuple[Activation, ...]
    dropouts: tuple[float, ...]

    @classmethod
    def from_spec(cls, spec: job_pb2.JobSpec) -> "Network":
        """Return the network of a spec."""
        layers = spec.network.layers
        identity = job_pb2.ACTIVATION_IDENTITY
        return cls(
            Layout.from_spec(spec),
            tuple(ACTIVATIONS[layer.activation or identity] for layer in layers),
            tuple(layer.dropout for layer in layers),
        )

    def predict(self, parameters: Sequence[tuple[Array, Array]], x: Array) -> Array:
        """Return ŷ, shape (N, n_L), for x of shape (N, n_1). `parameters` are (W^l, b^l) for l = 2..L."""
        x = np.ascontiguousarray(x, self.layout.dtype)
        if x.ndim != 2 or x.shape[1] != self.layout.sizes[0]:
            raise ValueError(f"x must have shape (N, {self.layout.sizes[0]}), got {x.shape}")
        predicted = np.empty((len(x), self.layout.sizes[-1]), self.layout.dtype)
        for lo in range(0, len(x), BLOCK_ROWS):
            z = x[lo : lo + BLOCK_ROWS]
            for (weights, biases), activation in zip(parameters, self.activations, strict=True):
                m = np.matmul(z, weights)
                m += biases
                z = np.empty_like(m)
                activation.forward(m, z, np.empty_like(m))
            predicted[lo : lo + BLOCK_ROWS] = z
        return predicted
