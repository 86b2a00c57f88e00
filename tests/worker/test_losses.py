"""Each loss against its definition in plain Python, its gradient at hand-picked points, and at extremes."""

import math

import numpy as np
import pytest

from lockstep_proto.v1 import job_pb2
from lockstep_worker.losses import loss_from_spec

DELTA = 0.5
BY_DEFINITION = {
    "NORM": lambda r: math.sqrt(sum(v * v for v in r)),
    "SQUARED_ERROR": lambda r: sum(v * v for v in r) / 2,
    "ABSOLUTE_ERROR": lambda r: sum(abs(v) for v in r),
    "HUBER": lambda r: sum(v * v / 2 if abs(v) <= DELTA else DELTA * (abs(v) - DELTA / 2) for v in r),
}


def rows_of(name, m, y, z=None):
    """q, δ or ∂Q/∂ŷ, and ŷ."""
    number = job_pb2.Loss.Value(f"LOSS_{name}")
    loss = loss_from_spec(job_pb2.JobSpec(loss=number, huber_delta=DELTA))
    m, y = np.array(m), np.array(y)
    z = np.full_like(m, np.nan) if z is None else np.array(z)
    d = np.full_like(m, np.nan)
    return loss.rows(m, z, y, d, np.empty_like(m)), d, z


def elementwise(name, z, y):
    q, d, _ = rows_of(name, z, y, z)
    return q, d


def test_every_loss_of_the_schema_is_there():
    for number in set(job_pb2.Loss.values()) - {0}:
        loss_from_spec(job_pb2.JobSpec(loss=number))
    with pytest.raises(ValueError, match="no such loss: 0"):
        loss_from_spec(job_pb2.JobSpec())


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_values_are_those_of_the_definition(name):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    expected = [BY_DEFINITION[name](r) for r in (z - y).tolist()]
    np.testing.assert_allclose(elementwise(name, z, y)[0], expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("NORM", [0.6, -0.8]),
        ("SQUARED_ERROR", [3.0, -4.0]),
        ("ABSOLUTE_ERROR", [1.0, -1.0]),
        ("HUBER", [DELTA, -DELTA]),
    ],
)
def test_gradients_at_a_point(name, gradient):
    np.testing.assert_allclose(elementwise(name, [[4.0, -3.0]], [[1.0, 1.0]])[1], [gradient])


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_value_and_gradient_are_zero_where_nothing_is_wrong(name):
    q, d = elementwise(name, [[0.3, -0.2]], [[0.3, -0.2]])
    assert q == 0.0
    np.testing.assert_array_equal(d, 0.0)


@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1.0, 1e6])
def test_the_gradient_of_the_norm_has_length_1_at_any_distance_from_its_kink(distance):
    _, d = elementwise("NORM", [[0.6 * distance, 0.8 * distance]], [[0.0, 0.0]])
    np.testing.assert_allclose(d, [[0.6, 0.8]], rtol=1e-12)


def test_huber_is_smooth_where_its_parts_meet():
    inside, at, outside = (elementwise("HUBER", [[DELTA + e]], [[0.0]]) for e in (-1e-9, 0.0, 1e-9))
    assert at[0] == pytest.approx(DELTA**2 / 2)
    assert inside[0] < at[0] < outside[0]
    assert at[1] == outside[1] == DELTA
    assert inside[1] == pytest.approx(DELTA, abs=1e-8)


def test_cross_entropy_is_that_of_the_definition():
    m, y = [[0.2, -1.0, 0.7]], [[0.0, 0.25, 0.75]]
    powers = [math.exp(v) for v in m[0]]
    expected = [v / sum(powers) for v in powers]
    q, d, z = rows_of("CROSS_ENTROPY", m, y)
    np.testing.assert_allclose(z, [expected])
    np.testing.assert_allclose(q, -sum(t * math.log(p) for t, p in zip(y[0], expected, strict=True)))
    np.testing.assert_allclose(d, [[p - t for t, p in zip(y[0], expected, strict=True)]])


def test_binary_cross_entropy_is_that_of_the_definition():
    m, y = [[0.2, -1.0, 0.7]], [[0.0, 1.0, 0.3]]
    expected = [1 / (1 + math.exp(-v)) for v in m[0]]
    q, d, z = rows_of("BINARY_CROSS_ENTROPY", m, y)
    parts = [t * math.log(p) + (1 - t) * math.log(1 - p) for t, p in zip(y[0], expected, strict=True)]
    np.testing.assert_allclose(z, [expected])
    np.testing.assert_allclose(q, -sum(parts))
    np.testing.assert_allclose(d, [[p - t for t, p in zip(y[0], expected, strict=True)]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("y", "expected"), [([1.0, 0.0], 0.0), ([0.0, 1.0], 2e4)])
def test_cross_entropy_at_extremes(y, expected, dtype):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        q, d, z = rows_of("CROSS_ENTROPY", np.array([[1e4, -1e4]], dtype), np.array([y], dtype))
    assert q.dtype == dtype
    assert q == expected
    np.testing.assert_array_equal(z, [[1.0, 0.0]])
    np.testing.assert_array_equal(d, [[1.0 - y[0], -y[1]]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("y", "expected"), [([1.0, 0.0], 0.0), ([0.0, 1.0], 2e4), ([0.0, 0.0], 1e4)])
def test_binary_cross_entropy_at_extremes(y, expected, dtype):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        q, d, z = rows_of("BINARY_CROSS_ENTROPY", np.array([[1e4, -1e4]], dtype), np.array([y], dtype))
    assert q.dtype == dtype
    assert q == expected
    np.testing.assert_array_equal(z, [[1.0, 0.0]])
    np.testing.assert_array_equal(d, [[1.0 - y[0], -y[1]]])


def test_a_sure_right_answer_costs_next_to_nothing_but_not_nothing():
    q, _, _ = rows_of("BINARY_CROSS_ENTROPY", [[40.0, -40.0]], [[1.0, 0.0]])
    np.testing.assert_allclose(q, 2 * math.exp(-40), rtol=1e-12)


def test_a_small_cross_entropy_is_not_lost_in_the_rounding_of_large_net_inputs():
    q, _, _ = rows_of("CROSS_ENTROPY", [[1e6, 1e6 - 10.0]], [[1.0, 0.0]])
    np.testing.assert_allclose(q, math.log1p(math.exp(-10.0)), rtol=1e-10)
