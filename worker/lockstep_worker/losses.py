"""The losses Q of one row, and their gradients; r = ŷ − y.

Each gives q, shape (N,), one value a row, and fills d, shape (N, n_L), with ∂Q/∂ŷ; the fused ones go through the last
activation as well: they take the net input m and fill z with ŷ = σ(m) and d with δ^L. t, shape (N, n_L), is scratch.
The sums over rows, and the one division by their weight, are made elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import job_pb2
from lockstep_worker.activations import log1p_exp_abs, row_maximum, sigmoid

Array = npt.NDArray[Any]
Rows = Callable[[Array, Array, Array, Array, Array], Array]


@dataclass(frozen=True)
class Loss:
    """`rows(m, z, y, d, t)` gives q and fills d; see the module."""

    rows: Rows
    fused: bool = False


def _norm(m: Array, z: Array, y: Array, d: Array, t: Array) -> Array:
    """Q = ‖r‖, the source text's own (its (2)); gradient r / ‖r‖, and 0 at r = 0, where Q has none."""
    np.subtract(z, y, out=d)  # r
    np.multiply(d, d, out=t)
    q: Array = np.sqrt(np.add.reduce(t, axis=1))
    d /= np.where(q > 0, q, 1)[:, None]  # (N, n_L) / (N, 1)
    return q


def _squared_error(m: Array, z: Array, y: Array, d: Array, t: Array) -> Array:
    """Q = ½ ‖r‖²; gradient r."""
    np.subtract(z, y, out=d)  # r
    np.multiply(d, d, out=t)
    q: Array = 0.5 * np.add.reduce(t, axis=1)
    return q


def _absolute_error(m: Array, z: Array, y: Array, d: Array, t: Array) -> Array:
    """Q = Σ |r_j|; gradient sign r, 0 where r_j = 0."""
    np.subtract(z, y, out=d)  # r
    np.abs(d, out=t)
    q: Array = np.add.reduce(t, axis=1)
    np.sign(d, out=d)
    return q


def _huber(delta: float) -> Rows:
    """Q = Σ of ½ r_j² where |r_j| <= δ, else δ (|r_j| − δ/2); gradient c, which is r clipped to ±δ. Huber (1964).

    In one form: Q = Σ c_j (r_j − c_j / 2).
    """

    def rows(m: Array, z: Array, y: Array, d: Array, t: Array) -> Array:
        np.subtract(z, y, out=d)  # r
        np.clip(d, -delta, delta, out=t)  # c
        t *= 0.5  # h = c / 2, exactly, so that Q = 2 Σ h (r − h) needs no more room
        d -= t
        d *= t
        q: Array = 2 * np.add.reduce(d, axis=1)
        np.add(t, t, out=d)
        return q

    return rows


def _cross_entropy(m: Array, z: Array, y: Array, d: Array, t: Array) -> Array:
    """Q = −Σ y_j log ŷ_j with ŷ = softmax m, as Σ y_j (log Σ_k e^(m_k − max m) − (m_j − max m)). Bridle (1990).

    δ = ŷ − y, which takes it that Σ y_j = 1. Both parts are small where the answer is right, so that a small loss is
    not lost in the rounding of a large net input.
    """
    np.subtract(m, row_maximum(m, t), out=d)  # (N, n_L) − (N, 1)
    np.exp(d, out=z)
    total = np.add.reduce(z, axis=1, keepdims=True)  # (N, 1)
    z /= total  # ŷ
    np.subtract(np.log(total), d, out=d)  # −log ŷ
    d *= y
    q: Array = np.add.reduce(d, axis=1)
    np.subtract(z, y, out=d)
    return q


def _binary_cross_entropy(m: Array, z: Array, y: Array, d: Array, t: Array) -> Array:
    """Q = −Σ y_j log ŷ_j + (1 − y_j) log(1 − ŷ_j) with ŷ = sigmoid m, as Σ log(1 + e^m_j) − y_j m_j; δ = ŷ − y.

    The large parts of log(1 + e^m) and y m are taken off each other first, or a small difference would be lost.
    """
    sigmoid(m, z, t)  # ŷ
    np.multiply(y, m, out=t)
    np.maximum(m, 0, out=d)
    d -= t
    log1p_exp_abs(m, t)
    d += t
    q: Array = np.add.reduce(d, axis=1)
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
