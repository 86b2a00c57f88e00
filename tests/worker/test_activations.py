import math

import numpy as np
import pytest

from lockstep_proto.v1 import job_pb2
from lockstep_worker.activations import ACTIVATIONS, row_maximum

BY_DEFINITION = {
    "SIGMOID": lambda m: 1 / (1 + math.exp(-m)),
    "TANH": math.tanh,
    "RELU": lambda m: max(m, 0.0),
    "LEAKY_RELU": lambda m: m if m > 0 else 0.01 * m,
    "ELU": lambda m: m if m > 0 else math.exp(m) - 1,
    "GELU": lambda m: 0.5 * m * (1 + math.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3))),
    "SILU": lambda m: m / (1 + math.exp(-m)),
    "SOFTPLUS": lambda m: math.log(1 + math.exp(m)),
    "IDENTITY": lambda m: m,
}
EXTREMES = np.array([[-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4]])


def activation(name):
    return ACTIVATIONS[job_pb2.Activation.Value(f"ACTIVATION_{name}")]


def forward(name, m):
    z = np.empty_like(m)
    activation(name).forward(m, z, np.empty_like(m))
    return z


def test_every_activation_of_the_schema_is_there():
    assert set(ACTIVATIONS) == set(job_pb2.Activation.values()) - {0}


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_values_are_those_of_the_definition(name):
    m = np.linspace(-6, 6, 101).reshape(1, -1)
    expected = [[BY_DEFINITION[name](value) for value in m[0].tolist()]]
    np.testing.assert_allclose(forward(name, m), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*BY_DEFINITION, "SOFTMAX"])
def test_nothing_overflows(name, dtype):
    m = EXTREMES.astype(dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        z = forward(name, m)
        d = np.ones_like(z)
        activation(name).backward(d, m, z, np.empty_like(m))
    assert np.isfinite(z).all()
    assert np.isfinite(d).all()


IN_PLACE = [name for name in [*BY_DEFINITION, "SOFTMAX"] if activation(name).in_place]


@pytest.mark.parametrize("name", IN_PLACE)
def test_z_may_take_the_place_of_m_where_it_is_said(name):
    m = np.linspace(-3, 3, 12).reshape(3, 4)
    expected = forward(name, m)
    given = m.copy()
    activation(name).forward(given, given, np.empty_like(m))
    np.testing.assert_array_equal(given, expected)


def test_softmax_rows_are_probabilities_whatever_is_added_to_them():
    m = np.random.default_rng(0).normal(size=(4, 6))
    z = forward("SOFTMAX", m)
    np.testing.assert_allclose(z.sum(axis=1), 1.0)
    np.testing.assert_allclose(z, forward("SOFTMAX", m + 1000.0), rtol=1e-9)


def test_small_probabilities_keep_their_digits():
    np.testing.assert_allclose(forward("SIGMOID", np.array([[-80.0]], np.float32)), math.exp(-80), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*BY_DEFINITION, "SOFTMAX"])
def test_the_largest_numbers_have_finite_values_and_slopes(name, dtype):
    largest = np.finfo(dtype).max / 4
    m = np.array([[-largest, 1.0, largest]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        z = forward(name, m)
        d = np.ones_like(z)
        activation(name).backward(d, m, z.copy(), np.empty_like(m))
    assert np.isfinite(z).all()
    assert np.isfinite(d).all()


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_slopes_are_those_of_the_definition(name):
    m = np.linspace(-6.05, 6.05, 100).reshape(1, -1)  # not through 0, where some have a kink
    h = 1e-5
    expected = [[(BY_DEFINITION[name](v + h) - BY_DEFINITION[name](v - h)) / (2 * h) for v in m[0].tolist()]]
    z = forward(name, m)
    d = np.full_like(m, 2.0)
    activation(name).backward(d, m.copy(), z, np.empty_like(m))
    np.testing.assert_allclose(d, 2 * np.array(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["RELU", "LEAKY_RELU"])
def test_the_slope_at_a_kink_is_that_of_its_left_side(name):
    m = np.zeros((1, 1))
    d = np.ones_like(m)
    activation(name).backward(d, m.copy(), forward(name, m), np.empty_like(m))
    assert d == (0.0 if name == "RELU" else 0.01)


@pytest.mark.parametrize("units", [1, 2, 10, 32, 33, 200])
@pytest.mark.parametrize("num_rows", [1, 7, 128])
def test_the_maximum_of_rows_is_the_same_for_rows_of_any_length(num_rows, units):
    m = np.random.default_rng(4).normal(size=(num_rows, units)).astype(np.float32)
    np.testing.assert_array_equal(row_maximum(m, np.empty_like(m)), m.max(axis=1, keepdims=True))
