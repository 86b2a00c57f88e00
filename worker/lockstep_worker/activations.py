"""The activations σ^l, and their derivatives.

`forward` turns m into z = σ(m) of the same shape. `backward` turns ∂Q/∂z into δ = ∂Q/∂m = ∂Q/∂z ⊙ σ'(m), in place, from
m and z. All are safe for m of any size. `in_place` says that σ' needs z alone, so that z may take the place of m.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]
LEAKY_SLOPE = 0.01  # of Maas et al.
_GELU_A = math.sqrt(2.0 / math.pi)
_GELU_B = 0.044715  # of Hendrycks and Gimpel


@dataclass(frozen=True)
class Activation:
    """σ and its derivative; see the module."""

    forward: Callable[[Array, Array], None]  # m, z
    backward: Callable[[Array, Array, Array], None]  # ∂Q/∂z and, afterwards, δ; m; z
    in_place: bool = True


def stable_sigmoid(m: Array, out: Array) -> None:
    """1 / (1 + e^−m), as e / (1 + e) with e = e^−|m| where m < 0: e never overflows."""
    e = np.exp(-np.abs(m))
    numerator = np.where(m >= 0, m.dtype.type(1), e)
    np.divide(numerator, 1 + e, out=out)


def _sigmoid_backward(d: Array, m: Array, z: Array) -> None:
    d *= z * (1 - z)


def _tanh(m: Array, z: Array) -> None:
    np.tanh(m, out=z)


def _tanh_backward(d: Array, m: Array, z: Array) -> None:
    d *= 1 - z * z


def _relu(m: Array, z: Array) -> None:
    np.maximum(m, 0, out=z)


def _relu_backward(d: Array, m: Array, z: Array) -> None:
    d *= z > 0


def _leaky_relu(m: Array, z: Array) -> None:
    np.multiply(m, np.where(m > 0, m.dtype.type(1), m.dtype.type(LEAKY_SLOPE)), out=z)


def _leaky_relu_backward(d: Array, m: Array, z: Array) -> None:
    d *= np.where(z > 0, z.dtype.type(1), z.dtype.type(LEAKY_SLOPE))


def _elu(m: Array, z: Array) -> None:
    np.copyto(z, np.where(m > 0, m, np.expm1(np.minimum(m, 0))))


def _elu_backward(d: Array, m: Array, z: Array) -> None:
    d *= np.where(z > 0, z.dtype.type(1), z + 1)


def _gelu_inner(m: Array) -> Array:
    inner: Array = np.tanh(_GELU_A * (m + _GELU_B * (m * m * m)))
    return inner


def _gelu(m: Array, z: Array) -> None:
    np.multiply(0.5 * m, 1 + _gelu_inner(m), out=z)


def _gelu_backward(d: Array, m: Array, z: Array) -> None:
    t = _gelu_inner(m)
    d *= 0.5 * (1 + t) + 0.5 * m * (1 - t * t) * (_GELU_A * (1 + 3 * _GELU_B * (m * m)))


def _silu(m: Array, z: Array) -> None:
    s = np.empty_like(m)
    stable_sigmoid(m, s)
    np.multiply(m, s, out=z)


def _silu_backward(d: Array, m: Array, z: Array) -> None:
    s = np.empty_like(m)
    stable_sigmoid(m, s)
    d *= s * (1 + m * (1 - s))


def _softplus(m: Array, z: Array) -> None:
    np.add(np.maximum(m, 0), np.log1p(np.exp(-np.abs(m))), out=z)


def _softplus_backward(d: Array, m: Array, z: Array) -> None:
    s = np.empty_like(m)
    stable_sigmoid(m, s)
    d *= s


def _identity(m: Array, z: Array) -> None:
    if z is not m:
        np.copyto(z, m)


def _identity_backward(d: Array, m: Array, z: Array) -> None:
    pass


def softmax(m: Array, z: Array) -> None:
    """e^m_j / Σ_k e^m_k of each row, with the row's maximum taken off first."""
    np.subtract(m, m.max(axis=1, keepdims=True), out=z)
    np.exp(z, out=z)
    np.divide(z, np.add.reduce(z, axis=1, keepdims=True), out=z)


def _softmax_backward(d: Array, m: Array, z: Array) -> None:
    """δ = Jᵀ d with J_jk = z_j (1[j=k] − z_k): z ⊙ (d − Σ_k d_k z_k)."""
    d -= np.add.reduce(d * z, axis=1, keepdims=True)
    d *= z


ACTIVATIONS: dict[int, Activation] = {
    job_pb2.ACTIVATION_SIGMOID: Activation(stable_sigmoid, _sigmoid_backward),
    job_pb2.ACTIVATION_TANH: Activation(_tanh, _tanh_backward),
    job_pb2.ACTIVATION_RELU: Activation(_relu, _relu_backward),
    job_pb2.ACTIVATION_LEAKY_RELU: Activation(_leaky_relu, _leaky_relu_backward),
    job_pb2.ACTIVATION_ELU: Activation(_elu, _elu_backward),
    job_pb2.ACTIVATION_GELU: Activation(_gelu, _gelu_backward, in_place=False),
    job_pb2.ACTIVATION_SILU: Activation(_silu, _silu_backward, in_place=False),
    job_pb2.ACTIVATION_SOFTPLUS: Activation(_softplus, _softplus_backward, in_place=False),
    job_pb2.ACTIVATION_IDENTITY: Activation(_identity, _identity_backward),
    job_pb2.ACTIVATION_SOFTMAX: Activation(softmax, _softmax_backward),
}
