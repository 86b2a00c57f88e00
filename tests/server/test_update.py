"""One update of the parameters, against its formula written out."""

import math

import numpy as np

from lockstep_proto.spec import read_spec
from lockstep_server.update import ParameterUpdate

SPEC = read_spec(
    {
        "network": {"inputs": 2, "layers": [{"units": 1}]},
        "loss": "norm",
        "optimizer": {"adam": {"learning_rate": 0.5, "beta1": 0.9, "beta2": 0.99}},
        "schedule": {"warmup_steps": 4},
        "batch_size": 8,
        "epochs": 1,
        "dtype": "float64",
    }
)


def test_adam_goes_on_counting_where_only_its_state_was_taken_over():
    w, g = np.array([1.0, 2.0, 3.0]), np.array([0.5, -0.5, 0.25])
    m, s = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    state = {"m": m.copy(), "s": s.copy()}
    update = ParameterUpdate(SPEC, attempt=1, version=0, parameters=w, state=state, num_updates=7)
    update.apply(0, 4.0 * g, 4.0)
    update.commit()
    m, s = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g * g
    unbiased = (m / (1 - 0.9**8)) / (np.sqrt(s / (1 - 0.99**8)) + 1e-8)
    np.testing.assert_allclose(update.parameters.flat(), w - 0.5 / 4 * unbiased, rtol=1e-14)
    assert (update.version, update.num_updates) == (1, 8)
    assert math.isclose(update.optimizer_state()["m"][0], m[0])


def test_what_was_handed_out_is_not_written_any_more():
    update = ParameterUpdate(SPEC, attempt=1, version=0, parameters=np.ones(3), state=None, num_updates=0)

    def step():
        update.apply(0, np.ones(3), 1.0)
        update.commit()

    step()
    parameters, state = update.parameters, update.optimizer_state()
    expected = parameters.flat(), {name: values.copy() for name, values in state.items()}
    for _ in range(3):
        step()
    np.testing.assert_array_equal(parameters.flat(), expected[0])
    for name, values in expected[1].items():
        np.testing.assert_array_equal(state[name], values)
        assert not np.array_equal(update.optimizer_state()[name], values)
