"""The activations σ^l, and their derivatives.

All arrays have shape (N, n_l). `forward` turns m into z = σ(m). `backward` turns d from ∂Q/∂z into δ = ∂Q/∂m, in
place: d ⊙ σ'(m), and Jᵀ d for softmax. All are safe for m of any size. Nothing of that shape is allocated: t is
scratch. `in_place` says that σ' needs z alone, so that z may lie where m was, and leaves it as it is; the others' needs
m alone, which it uses up, and takes z for more scratch.
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
GELU_A = math.sqrt(2.0 / math.pi)
GELU_B = 0.044715  # of Hendrycks and Gimpel
SHORT_ROW = 32  # maxima of rows up to here are found faster with the columns one after the other
GELU_FLAT = 10.0  # from here on the tanh in gelu is ±1 in float64 too; m³ would overflow


@dataclass(frozen=True)
class Activation:
    """σ and its derivative; see the module."""

    forward: Callable[[Array, Array, Array], None]  # m, z, t
    backward: Callable[[Array, Array, Array, Array], None]  # d, m, z, t
    in_place: bool = True


def sigmoid(m: Array, z: Array, t: Array) -> None:
    """σ(m) = 1 / (1 + e^−m), as e^min(m, 0) / (1 + e^−|m|): no power overflows. σ' = σ (1 − σ). Feng (2018)."""
    np.abs(m, out=t)
    np.negative(t, out=t)
    np.exp(t, out=t)
    t += 1
    np.minimum(m, 0, out=z)
    np.exp(z, out=z)
    z /= t


def _sigmoid_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    np.subtract(1, z, out=t)
    t *= z
    d *= t


def _tanh(m: Array, z: Array, t: Array) -> None:
    """σ(m) = tanh m; σ' = 1 − σ². LeCun et al., "Efficient BackProp" (1998)."""
    np.tanh(m, out=z)


def _tanh_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    np.multiply(z, z, out=t)
    np.subtract(1, t, out=t)
    d *= t


def _relu(m: Array, z: Array, t: Array) -> None:
    """σ(m) = max(m, 0); σ' = 1 for m > 0, else 0. Nair and Hinton (2010)."""
    np.maximum(m, 0, out=z)


def _relu_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    np.greater(z, 0, out=t)
    d *= t


def _leaky_relu(m: Array, z: Array, t: Array) -> None:
    """σ(m) = max(m, 0.01 m); σ' = 1 for m > 0, else 0.01. Maas, Hannun and Ng (2013)."""
    np.multiply(m, LEAKY_SLOPE, out=t)
    np.maximum(m, t, out=z)


def _leaky_relu_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    np.greater(z, 0, out=t)
    np.maximum(t, LEAKY_SLOPE, out=t)
    d *= t


def _elu(m: Array, z: Array, t: Array) -> None:
    """σ(m) = max(m, 0) + e^min(m, 0) − 1; σ' = min(σ, 0) + 1. Clevert, Unterthiner and Hochreiter (2016), α = 1."""
    np.minimum(m, 0, out=t)
    np.expm1(t, out=t)
    np.maximum(m, 0, out=z)
    z += t


def _elu_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    np.minimum(z, 0, out=t)
    t += 1
    d *= t


def _gelu(m: Array, z: Array, t: Array) -> None:
    """σ(m) = m ½ (1 + h) with h = tanh(a (c + b c³)) and c = m clipped to ±10, where h is flat already.

    σ' = ½ (1 + h) + ½ c (1 − h²) a (1 + 3 b c²). a = √(2/π), b = 0.044715. Hendrycks and Gimpel (2016), the tanh form.
    """
    np.clip(m, -GELU_FLAT, GELU_FLAT, out=z)  # c
    _gelu_tanh(z, t)  # h
    t += 1
    t *= 0.5
    np.multiply(m, t, out=z)


def _gelu_tanh(c: Array, h: Array) -> None:
    np.multiply(c, c, out=h)
    h *= GELU_B
    h += 1
    h *= c
    h *= GELU_A
    np.tanh(h, out=h)


def _gelu_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    np.clip(m, -GELU_FLAT, GELU_FLAT, out=m)  # c
    _gelu_tanh(m, t)  # h
    np.multiply(m, m, out=z)
    z *= 3 * GELU_B
    z += 1
    z *= GELU_A
    z *= m  # c a (1 + 3 b c²)
    np.multiply(t, t, out=m)
    np.subtract(1, m, out=m)
    z *= m  # c a (1 + 3 b c²) (1 − h²)
    z += t
    z += 1
    z *= 0.5
    d *= z


def _silu(m: Array, z: Array, t: Array) -> None:
    """σ(m) = m s with s = sigmoid m; σ' = s (1 + m (1 − s)). Elfwing, Uchibe and Doya (2018)."""
    sigmoid(m, z, t)
    z *= m


def _silu_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    sigmoid(m, z, t)  # s
    np.subtract(1, z, out=t)
    t *= m
    t += 1
    t *= z
    d *= t


def _softplus(m: Array, z: Array, t: Array) -> None:
    """σ(m) = log(1 + e^m), as max(m, 0) + log(1 + e^−|m|); σ' = sigmoid m. Dugas et al. (2001)."""
    log1p_exp_abs(m, t)
    np.maximum(m, 0, out=z)
    z += t


def log1p_exp_abs(m: Array, out: Array) -> None:
    """log(1 + e^−|m|), what softplus has above max(m, 0)."""
    np.abs(m, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    np.log1p(out, out=out)


def _softplus_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    sigmoid(m, z, t)
    d *= z


def _identity(m: Array, z: Array, t: Array) -> None:
    """σ(m) = m; σ' = 1."""
    if z is not m:
        np.copyto(z, m)


def _identity_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    pass


def _softmax(m: Array, z: Array, t: Array) -> None:
    """σ(m)_j = e^m_j / Σ_k e^m_k, with the row's maximum taken off m first.

    Its Jacobian J_jk = z_j (1[j=k] − z_k) is symmetric: Jᵀ d = z ⊙ (d − Σ_k d_k z_k). Bridle, "Probabilistic
    interpretation of feedforward classification network outputs" (1990).
    """
    np.subtract(m, row_maximum(m, t), out=z)  # (N, n_L) − (N, 1)
    np.exp(z, out=z)
    z /= np.add.reduce(z, axis=1, keepdims=True)


def row_maximum(m: Array, t: Array) -> Array:
    """max_j m_j of each row, shape (N, 1). A zero has either sign: nothing that is made of m − max m shows which."""
    if m.shape[1] > SHORT_ROW:
        top: Array = np.maximum.reduce(m, axis=1, keepdims=True)
        return top
    columns = t.reshape(m.shape[::-1])  # (n_L, N)
    np.copyto(columns, m.T)
    tops: Array = np.maximum.reduce(columns, axis=0)  # (N,)
    return tops[:, None]


def _softmax_backward(d: Array, m: Array, z: Array, t: Array) -> None:
    np.multiply(d, z, out=t)
    d -= np.add.reduce(t, axis=1, keepdims=True)  # (N, n_L) − (N, 1)
    d *= z


ACTIVATIONS: dict[int, Activation] = {
    job_pb2.ACTIVATION_SIGMOID: Activation(sigmoid, _sigmoid_backward),
    job_pb2.ACTIVATION_TANH: Activation(_tanh, _tanh_backward),
    job_pb2.ACTIVATION_RELU: Activation(_relu, _relu_backward),
    job_pb2.ACTIVATION_LEAKY_RELU: Activation(_leaky_relu, _leaky_relu_backward),
    job_pb2.ACTIVATION_ELU: Activation(_elu, _elu_backward),
    job_pb2.ACTIVATION_GELU: Activation(_gelu, _gelu_backward, in_place=False),
    job_pb2.ACTIVATION_SILU: Activation(_silu, _silu_backward, in_place=False),
    job_pb2.ACTIVATION_SOFTPLUS: Activation(_softplus, _softplus_backward, in_place=False),
    job_pb2.ACTIVATION_IDENTITY: Activation(_identity, _identity_backward),
    job_pb2.ACTIVATION_SOFTMAX: Activation(_softmax, _softmax_backward),
}
