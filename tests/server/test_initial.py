import math

import numpy as np
import pytest

from lockstep_proto.layout import Layout
from lockstep_proto.spec import read_spec
from lockstep_server.initial import initial_parameters

N_IN, N_OUT = 300, 200


def draw(initializer, seed=0, dtype="float32"):
    spec = read_spec(
        {
            "network": {"inputs": N_IN, "layers": [{"units": N_OUT}, {"units": N_IN}]},
            "loss": "norm",
            "initial_parameters": initializer,
            "seed": seed,
            "dtype": dtype,
            "batch_size": 8,
            "epochs": 1,
        }
    )
    return initial_parameters(spec), Layout.from_spec(spec)


@pytest.mark.parametrize(
    ("initializer", "variance", "bound"),
    [
        ("glorot_uniform", 2 / (N_IN + N_OUT), math.sqrt(6 / (N_IN + N_OUT))),
        ("glorot_normal", 2 / (N_IN + N_OUT), math.inf),
        ("he_uniform", 2 / N_IN, math.sqrt(6 / N_IN)),
        ("he_normal", 2 / N_IN, math.inf),
        ("zeros", 0.0, 0.0),
    ],
)
def test_distributions(initializer, variance, bound):
    flat, layout = draw(initializer)
    (weights, biases), _ = layout.views(flat)
    assert weights.var() == pytest.approx(variance, rel=0.03)
    assert abs(weights.mean()) < 0.01
    assert np.abs(weights).max() <= bound
    assert not biases.any()


def test_layers_and_seeds_have_streams_of_their_own():
    flat, layout = draw("he_normal")
    (first, _), (second, _) = layout.views(flat)
    assert first.ravel()[0] != second.ravel()[0]
    assert draw("he_normal", seed=1)[0][0] != flat[0]
    assert draw("he_normal")[0].tobytes() == flat.tobytes()


def test_float32_is_the_rounded_float64():
    double = draw("glorot_uniform", dtype="float64")[0]
    np.testing.assert_array_equal(draw("glorot_uniform")[0], double.astype(np.float32))
