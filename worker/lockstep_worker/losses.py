"""The losses Q of one row, and their gradients; r = ŷ − y.

Each gives q, shape (N,), one value a row, and fills d, shape (N, n_L), with ∂Q/∂ŷ; the fused ones go through the last
activation as well and fill d with δ^L. The sums over rows, and the one division by their weight, are made elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import job_pb2
from lockstep_worker.activations import stable_sigmoid

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Loss:
    """`rows(m, z, y, d)` gives q and fills d. A fused loss also fills z = σ(m), and d with δ^L."""

    rows: Callable[[Array, Array, Array, Array], Array]
    fused: bool = False


def _norm(m: Array, z: Array, y: Array, d: Array) -> Array:
    """‖r‖, the source text's own Q (its (2)); gradient r / ‖r‖, and 0 at r = 0, where there is none."""
    np.subtract(z, y, out=d)
    q: Array = np.sqrt(np.add.reduce(d * d, axis=1))
    np.divide(d, np.where(q > 0, q, 1)[:, None], out=d)
    return q


def _squared_error(m: Array, z: Array, y: Array, d: Array) -> Array:
    """½ ‖r‖²; gradient r."""
    np.subtract(z, y, out=d)
    q: Array = 0.5 * np.add.reduce(d * d, axis=1)
    return q


def _absolute_error(m: Array, z: Array, y: Array, d: Array) -> Array:
    """Σ |r_j|; gradient sign r."""
    np.subtract(z, y, out=d)
    q: Array = np.add.reduce(np.abs(d), axis=1)
    np.sign(d, out=d)
    return q


def _huber(delta: float) -> Callable[[Array, Array, Array, Array], Array]:
    """Σ of ½ r_j² where |r_j| <= δ, else δ (|r_j| − δ/2); gradient r_j clipped to ±δ. Huber (1964)."""

    def rows(m: Array, z: Array, y: Array, d: Array) -> Array:
        np.subtract(z, y, out=d)
        c = np.clip(d, -delta, delta)
        q: Array = np.add.reduce(c * (d - 0.5 * c), axis=1)
        np.copyto(d, c)
        return q

    return rows


def _cross_entropy(m: Array, z: Array, y: Array, d: Array) -> Array:
    """−Σ y_j log ŷ_j with ŷ = softmax m, as Σ y_j (log Σ e^m − m_j); δ = ŷ − y where Σ y_j = 1.

    Bridle, "Probabilistic interpretation of feedforward classification network outputs" (1990).
    """
    top = m.max(axis=1, keepdims=True)
    np.subtract(m, top, out=z)
    np.exp(z, out=z)
    total = np.add.reduce(z, axis=1, keepdims=True)
    np.divide(z, total, out=z)
    np.subtract(np.log(total) + top, m, out=d)
    q: Array = np.add.reduce(y * d, axis=1)
    np.subtract(z, y, out=d)
    return q


def _binary_cross_entropy(m: Array, z: Array, y: Array, d: Array) -> Array:
    """−Σ y_j log ŷ_j + (1 − y_j) log(1 − ŷ_j) with ŷ = sigmoid m, as Σ log(1 + e^m_j) − y_j m_j; δ = ŷ − y."""
    stable_sigmoid(m, z)
    q: Array = np.add.reduce(np.maximum(m, 0) + np.log1p(np.exp(-np.abs(m))) - y * m, axis=1)
    np.subtract(z, y, out=d)
    return q


def loss_from_spec(spec: job_pb2.JobSpec) -> Loss:
    """Return the loss of a complete spec."""
    match spec.loss:
        case job_pb2.LOSS_NORM:
            return Loss(_norm)
        case job_pb2.LOSS_SQUARED_ERROR:
            return Loss(_squared_error)
        case job_pb2.LOSS_ABSOLUTE_ERROR:
            return Loss(_absolute_error)
        case job_pb2.LOSS_HUBER:
            return Loss(_huber(spec.huber_delta))
        case job_pb2.LOSS_CROSS_ENTROPY:
            return Loss(_cross_entropy, fused=True)
        case job_pb2.LOSS_BINARY_CROSS_ENTROPY:
            return Loss(_binary_cross_entropy, fused=True)
    raise ValueError(f"no such loss: {spec.loss}")
