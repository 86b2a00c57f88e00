"""Every variant against its formula, element by element in plain Python, and on classic problems."""

import itertools
import math

import numpy as np
import pytest

from lockstep_proto.defaults import complete
from lockstep_proto.v1 import job_pb2
from lockstep_server.optimizers import adam, optimizer_from_spec

VARIANTS = {
    "sgd": job_pb2.Optimizer(sgd=job_pb2.Sgd(learning_rate=0.1)),
    "momentum": job_pb2.Optimizer(sgd=job_pb2.Sgd(learning_rate=0.02, momentum=0.8)),
    "nesterov": job_pb2.Optimizer(sgd=job_pb2.Sgd(learning_rate=0.02, momentum=0.8, nesterov=True)),
    "adagrad": job_pb2.Optimizer(adagrad=job_pb2.Adagrad(learning_rate=0.5)),
    "rmsprop": job_pb2.Optimizer(rmsprop=job_pb2.RmsProp(learning_rate=0.02)),
    "adam": job_pb2.Optimizer(adam=job_pb2.Adam(learning_rate=0.05)),
    "adamw": job_pb2.Optimizer(adamw=job_pb2.AdamW(learning_rate=0.05, weight_decay=0.1)),
}


def settings(name):
    spec = complete(job_pb2.JobSpec(optimizer=VARIANTS[name])).optimizer
    return spec, getattr(spec, spec.WhichOneof("kind"))


def by_formula(name, w, gradients, is_weight):
    """Plain Python on one element."""
    o = settings(name)[1]
    eta, v, s, m = o.learning_rate, 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        if name == "sgd":
            w -= eta * g
        elif name in ("momentum", "nesterov"):
            v = o.momentum * v + g
            w -= eta * (g + o.momentum * v if name == "nesterov" else v)
        elif name == "adagrad":
            s += g * g
            w -= eta * g / (math.sqrt(s) + o.epsilon)
        elif name == "rmsprop":
            s = o.decay * s + (1 - o.decay) * g * g
            w -= eta * g / (math.sqrt(s) + o.epsilon)
        else:
            m = o.beta1 * m + (1 - o.beta1) * g
            s = o.beta2 * s + (1 - o.beta2) * g * g
            step = eta * (m / (1 - o.beta1**t)) / (math.sqrt(s / (1 - o.beta2**t)) + o.epsilon)
            w -= step + (eta * o.weight_decay * w if name == "adamw" and is_weight else 0.0)
    return w


def run(name, w, gradients, cuts=(), weights=None):
    """The product's optimizer over chunks cut at `cuts`."""
    spec, kind = settings(name)
    optimizer = optimizer_from_spec(spec)
    state = optimizer.init(w.size, w.dtype)
    weights = slice(0, w.size) if weights is None else weights
    for step, gradient in enumerate(gradients):
        new = np.empty_like(w)
        edges = [0, *cuts, w.size]
        for lo, hi in itertools.pairwise(edges):
            part = slice(max(weights.start, lo) - lo, max(min(weights.stop, hi) - lo, 0))
            slices = {key: values[lo:hi] for key, values in state.items()}
            inside = [part] if part.start < part.stop else []
            optimizer.update(
                new[lo:hi], w[lo:hi], gradient[lo:hi].copy(), slices, slices, kind.learning_rate, step, inside
            )
        w = new
    return w


@pytest.mark.parametrize("name", VARIANTS)
def test_five_steps_are_those_of_the_formula(name):
    rng = np.random.default_rng(1)
    w, gradients = rng.normal(size=6), rng.normal(size=(5, 6))
    actual = run(name, w, gradients, weights=slice(0, 4))
    expected = [by_formula(name, w[i], gradients[:, i].tolist(), i < 4) for i in range(6)]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", VARIANTS)
def test_where_the_vector_is_cut_does_not_show(name, dtype):
    rng = np.random.default_rng(2)
    w, gradients = rng.normal(size=1000).astype(dtype), rng.normal(size=(4, 1000)).astype(dtype)
    whole = run(name, w, gradients, weights=slice(100, 700))
    assert whole.dtype == dtype
    for cuts in [(500,), (1, 2, 3), (333, 650, 999), (100, 700)]:
        assert run(name, w, gradients, cuts, weights=slice(100, 700)).tobytes() == whole.tobytes()


def quadratic(w):
    return np.array([1.0, 10.0]) * w


def rosenbrock(w):
    x, y = w
    return np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]) / 100


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "adamw"])
@pytest.mark.parametrize(
    ("gradient", "start", "minimum"), [(quadratic, [2.0, 1.0], [0, 0]), (rosenbrock, [0.5, 0.5], [1, 1])]
)
def test_classic_problems_are_solved(name, gradient, start, minimum):
    spec, kind = settings(name)
    optimizer = optimizer_from_spec(spec)
    w = np.array(start)
    state = optimizer.init(2, w.dtype)
    for step in range(20_000):
        new = np.empty_like(w)
        optimizer.update(new, w, gradient(w), state, state, kind.learning_rate, step, [])
        w = new
    np.testing.assert_allclose(w, minimum, atol=0.15)  # rmsprop at a constant rate goes round the minimum


def test_weight_decay_shrinks_weights_and_leaves_biases():
    w = run("adamw", np.ones(4), np.zeros((1, 4)), weights=slice(0, 2))
    np.testing.assert_allclose(w, [1 - 0.05 * 0.1] * 2 + [1.0] * 2)


def test_the_state_is_named():
    assert optimizer_from_spec(settings("sgd")[0]).state_names == ()
    assert optimizer_from_spec(settings("momentum")[0]).state_names == ("v",)
    assert adam(0.9, 0.999, 1e-8).state_names == ("m", "s")
