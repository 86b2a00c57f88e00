"""The optimizers: pairs of `init` and `update` that work element by element.

`update` gets a part of the flat vector: the old parameters w, the gradient g (which it may use as scratch) and the
part's slices of the state. It writes the new parameters to `out` and the new state to `new`. Nothing depends on where
the vector is cut, so the transport's chunks do not show in the bits. Scalars are Python floats and take the type of the
arrays they meet (NEP 50); products and sums are made in the order in which the formulas stand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]
State = dict[str, Array]
Update = Callable[[Array, Array, Array, State, State, float, int, Sequence[slice]], None]
"""(out, w, g, state, new, learning_rate, num_updates, weights): all arrays of shape (n,); `num_updates` the state has
seen before this one; `weights` are the parts of W^l."""


@dataclass(frozen=True)
class Optimizer:
    """A rule of update, and the names of what it remembers."""

    state_names: tuple[str, ...]
    update: Update

    def init(self, num_parameters: int, dtype: "np.dtype[Any]") -> State:
        """Return the state at version 0: zeros."""
        return {name: np.zeros(num_parameters, dtype) for name in self.state_names}


def sgd() -> Optimizer:
    """Gradient descent, w ← w − η g: the source text's own (Feng 2018; Cauchy 1847)."""

    def update(
        out: Array, w: Array, g: Array, state: State, new: State, lr: float, num_updates: int, weights: Sequence[slice]
    ) -> None:
        np.multiply(g, lr, out=g)
        np.subtract(w, g, out=out)

    return Optimizer((), update)


def momentum(mu: float) -> Optimizer:
    """Heavy ball: v ← μ v + g, w ← w − η v. Polyak (1964), in the form in which η scales v, not g."""

    def update(
        out: Array, w: Array, g: Array, state: State, new: State, lr: float, num_updates: int, weights: Sequence[slice]
    ) -> None:
        v = new["v"]
        np.multiply(state["v"], mu, out=v)
        np.add(v, g, out=v)
        np.multiply(v, lr, out=g)
        np.subtract(w, g, out=out)

    return Optimizer(("v",), update)


def nesterov(mu: float) -> Optimizer:
    """Nesterov's momentum: v ← μ v + g, w ← w − η (g + μ v).

    Nesterov (1983), in the form of Sutskever et al. (2013) with w at the looked-ahead point.
    """

    def update(
        out: Array, w: Array, g: Array, state: State, new: State, lr: float, num_updates: int, weights: Sequence[slice]
    ) -> None:
        v = new["v"]
        np.multiply(state["v"], mu, out=v)
        np.add(v, g, out=v)
        np.multiply(v, mu, out=out)
        np.add(g, out, out=g)
        np.multiply(g, lr, out=g)
        np.subtract(w, g, out=out)

    return Optimizer(("v",), update)


def adagrad(epsilon: float) -> Optimizer:
    """AdaGrad: s ← s + g², w ← w − η g / (√s + ε). Duchi, Hazan and Singer (2011), diagonal form."""

    def update(
        out: Array, w: Array, g: Array, state: State, new: State, lr: float, num_updates: int, weights: Sequence[slice]
    ) -> None:
        s = new["s"]
        np.multiply(g, g, out=out)
        np.add(state["s"], out, out=s)
        _scaled_step(out, w, g, s, lr, epsilon)

    return Optimizer(("s",), update)


def rmsprop(decay: float, epsilon: float) -> Optimizer:
    """RMSProp: s ← ρ s + (1 − ρ) g², w ← w − η g / (√s + ε). Tieleman and Hinton, lecture 6.5 (2012), ε outside."""

    def update(
        out: Array, w: Array, g: Array, state: State, new: State, lr: float, num_updates: int, weights: Sequence[slice]
    ) -> None:
        s = new["s"]
        _mean_square(state["s"], s, g, decay, out)
        _scaled_step(out, w, g, s, lr, epsilon)

    return Optimizer(("s",), update)


def adam(beta1: float, beta2: float, epsilon: float, weight_decay: float = 0.0) -> Optimizer:
    """Adam: m ← β1 m + (1 − β1) g, s ← β2 s + (1 − β2) g², w ← w − η' m / (√(s / c2) + ε), η' = η / c1.

    c1 = 1 − β1^t and c2 = 1 − β2^t, t counted from 1, correct the bias of the zeros that m and s began with. Kingma
    and Ba (2015), algorithm 1. With weight decay λ it is AdamW: W^l also loses η λ W^l, biases do not. Loshchilov and
    Hutter (2019), algorithm 2, with η as the schedule's factor.
    """

    def update(
        out: Array, w: Array, g: Array, state: State, new: State, lr: float, num_updates: int, weights: Sequence[slice]
    ) -> None:
        m, s = new["m"], new["s"]
        c1, c2 = 1.0 - beta1 ** (num_updates + 1), 1.0 - beta2 ** (num_updates + 1)
        _mean_square(state["s"], s, g, beta2, out)
        np.multiply(g, 1.0 - beta1, out=g)
        np.multiply(state["m"], beta1, out=m)
        np.add(m, g, out=m)
        np.sqrt(s, out=out)
        np.multiply(out, 1.0 / math.sqrt(c2), out=out)
        np.add(out, epsilon, out=out)
        np.multiply(m, lr / c1, out=g)
        np.divide(g, out, out=g)
        np.subtract(w, g, out=out)
        if weight_decay:
            for part in weights:
                np.multiply(w[part], lr * weight_decay, out=g[part])
                np.subtract(out[part], g[part], out=out[part])

    return Optimizer(("m", "s"), update)


def optimizer_from_spec(spec: job_pb2.Optimizer) -> Optimizer:
    """Return the optimizer of a complete spec."""
    match spec.WhichOneof("kind"):
        case "adagrad":
            return adagrad(spec.adagrad.epsilon)
        case "rmsprop":
            return rmsprop(spec.rmsprop.decay, spec.rmsprop.epsilon)
        case "adam":
            return adam(spec.adam.beta1, spec.adam.beta2, spec.adam.epsilon)
        case "adamw":
            return adam(spec.adamw.beta1, spec.adamw.beta2, spec.adamw.epsilon, spec.adamw.weight_decay)
        case _ if spec.sgd.nesterov:
            return nesterov(spec.sgd.momentum)
        case _:
            return momentum(spec.sgd.momentum) if spec.sgd.momentum else sgd()


def _mean_square(old: Array, s: Array, g: Array, decay: float, scratch: Array) -> None:
    """s ← ρ s + (1 − ρ) g², the old s read, the new one written."""
    np.multiply(g, g, out=scratch)
    np.multiply(scratch, 1.0 - decay, out=scratch)
    np.multiply(old, decay, out=s)
    np.add(s, scratch, out=s)


def _scaled_step(out: Array, w: Array, g: Array, s: Array, lr: float, epsilon: float) -> None:
    """w − η g / (√s + ε); the quotient is made of (η g) and (√s + ε)."""
    np.sqrt(s, out=out)
    np.add(out, epsilon, out=out)
    np.multiply(g, lr, out=g)
    np.divide(g, out, out=g)
    np.subtract(w, g, out=out)
