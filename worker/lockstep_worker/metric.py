"""The metric of a row: right answers where the last layer tells classes apart, else ‖r‖²."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]
Metric = Callable[[Array, Array, Array], Array]  # z, y and scratch t of shape (N, n_L) -> one value a row, (N,)


def metric_from_spec(spec: job_pb2.JobSpec) -> Metric:
    """Return the metric of a complete spec."""
    if spec.network.layers[-1].activation == job_pb2.ACTIVATION_SOFTMAX:
        return _right_class
    if spec.loss == job_pb2.LOSS_BINARY_CROSS_ENTROPY:
        return _right_units
    return _squared_norm


def _right_class(z: Array, y: Array, t: Array) -> Array:
    """1 where the largest unit is that of y (the first of equal ones), else 0."""
    right: Array = z.argmax(axis=1) == y.argmax(axis=1)
    return right


def _right_units(z: Array, y: Array, t: Array) -> Array:
    """The share of units on the right side of ½."""
    truths = t.reshape(-1).view(np.bool_)  # a number has room for four of them at least
    right, wanted = truths[: t.size].reshape(t.shape), truths[t.size : 2 * t.size].reshape(t.shape)
    np.greater_equal(z, 0.5, out=right)
    np.greater_equal(y, 0.5, out=wanted)
    np.equal(right, wanted, out=right)
    share: Array = np.add.reduce(right, axis=1, dtype=np.float64) / t.shape[1]
    return share


def _squared_norm(z: Array, y: Array, t: Array) -> Array:
    """‖ŷ − y‖²."""
    np.subtract(z, y, out=t)
    np.multiply(t, t, out=t)
    squares: Array = np.add.reduce(t, axis=1)
    return squares
