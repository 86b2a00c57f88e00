"""One update of the parameters, against its formula written out."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lockstep_proto.layout import Layout
from lockstep_proto.spec import read_spec
from lockstep_server.room import own_memory
from lockstep_server.update import NotFiniteError, OverflowedError, ParameterUpdate

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
    np.testing.assert_allclose(update.parameters, w - 0.5 / 4 * unbiased, rtol=1e-14)
    assert (update.version, update.num_updates) == (1, 8)
    assert math.isclose(update.optimizer_state()["m"][0], m[0])


def test_what_was_handed_out_is_not_written_any_more():
    update = ParameterUpdate(SPEC, attempt=1, version=0, parameters=np.ones(3), state=None, num_updates=0)

    def step():
        update.apply(0, np.ones(3), 1.0)
        update.commit()

    step()
    parameters, state = update.parameters, update.optimizer_state()
    expected = parameters.copy(), {name: values.copy() for name, values in state.items()}
    for _ in range(3):
        step()
    np.testing.assert_array_equal(parameters, expected[0])
    for name, values in expected[1].items():
        np.testing.assert_array_equal(state[name], values)
        assert not np.array_equal(update.optimizer_state()[name], values)


OPTIMIZERS = {
    "sgd": {"sgd": {}},
    "momentum": {"sgd": {"momentum": 0.9}},
    "nesterov": {"sgd": {"momentum": 0.9, "nesterov": True}},
    "adagrad": {"adagrad": {}},
    "rmsprop": {"rmsprop": {}},
    "adam": {"adam": {}},
    "adamw": {"adamw": {"weight_decay": 1e-3}},
}
SIZES = 70, 1000, 3  # more than a block of the norms, and a rest that fills no register of the processor
NUM_PARAMETERS = 70 * 1000 + 1000 + 1000 * 3 + 3
LAYERS = [slice(0, 71_000), slice(71_000, NUM_PARAMETERS)]


def update_of(parameters, optimizer, learning_rate, **changes):
    ((kind, fields),) = optimizer.items()
    spec = read_spec(
        {
            "network": {"inputs": SIZES[0], "layers": [{"units": units} for units in SIZES[1:]]},
            "loss": "norm",
            "optimizer": {kind: fields | {"learning_rate": learning_rate}},
            "batch_size": 8,
            "epochs": 1,
            "dtype": parameters.dtype.name,
        }
        | changes
    )
    return ParameterUpdate(spec, attempt=1, version=0, parameters=parameters, state=None, num_updates=0)


def step(update, g):
    for i in range(update.chunking.num_chunks):
        lo, hi = update.chunking.range(i)
        update.apply(i, g[lo:hi], 1.0)
    update.finish()
    update.commit()


def outcome_of(update, g):
    """Return what is wrong with the update, if something is."""
    try:
        step(update, g)
    except OverflowedError as error:
        return str(error)
    return ""


def noting(optimizer, written):
    def noted(out, *arguments):
        optimizer.update(out, *arguments)
        written.append(out)

    return replace(optimizer, update=noted)


@pytest.mark.parametrize("clip_norm", [None, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_update_that_leaves_the_range_of_numbers_is_never_missed(optimizer, dtype, clip_norm):
    random = np.random.default_rng(5)
    largest = float(np.finfo(dtype).max)
    changes = {} if clip_norm is None else {"clip_norm": clip_norm}
    outcomes = set()
    for _ in range(30):
        w, g = (random.standard_normal(NUM_PARAMETERS).astype(dtype) for _ in range(2))
        at = int(random.integers(NUM_PARAMETERS))
        w[at], g[at] = random.choice([-largest, largest, 1.0]), random.choice([-2.0, 2.0, 1e18])
        update, written = update_of(w, optimizer, largest / 100, **changes), []
        update._optimizer = noting(update._optimizer, written)
        outcome = outcome_of(update, g)
        finite = all(np.isfinite(out).all() for out in written)
        layer = 2 if at < LAYERS[0].stop else 3
        assert outcome == ("" if finite else f"the update of layer {layer} leaves the range of numbers")
        outcomes.add(finite)
    assert outcomes == {True, False}


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_parameters_that_are_not_finite_from_the_beginning_are_found_by_the_first_update(value):
    w = np.zeros(NUM_PARAMETERS, np.float32)
    w[-1] = value
    with pytest.raises(OverflowedError, match="layer 3"):
        step(update_of(w, OPTIMIZERS["sgd"], 0.1), np.ones(NUM_PARAMETERS, np.float32))


def test_the_norms_of_layers_are_measured_where_that_is_wanted():
    random = np.random.default_rng(6)
    w, g = (random.standard_normal(NUM_PARAMETERS).astype(np.float32) for _ in range(2))
    update = update_of(w, OPTIMIZERS["momentum"], 0.1)
    step(update, g)
    assert update.gradient_norms == update.parameter_norms == []
    update.measure_layers = True
    step(update, 2 * g)
    after = update.parameters
    for norms, values in ((update.gradient_norms, 2 * g), (update.parameter_norms, after)):
        assert norms == pytest.approx([np.linalg.norm(values[part].astype(float)) for part in LAYERS])


def test_what_has_gone_out_of_a_step_that_is_done_again_stays_as_it_is():
    update = update_of(np.zeros(NUM_PARAMETERS, np.float32), OPTIMIZERS["sgd"], 0.5)
    first = update.apply(0, np.full(NUM_PARAMETERS, 2.0, np.float32), 1.0)
    before = bytes(first.data)
    update.restart()
    assert update.next_messages == []
    step(update, np.full(NUM_PARAMETERS, 4.0, np.float32))
    assert bytes(first.data) == before
    assert (update.parameters == -2.0).all()


def test_memory_for_a_version_is_asked_for_when_it_is_first_written_to():
    """Workers have let go of the version before the present one then."""
    asked = []

    def room(num_bytes):
        asked.append(num_bytes)
        return own_memory(num_bytes)

    update = ParameterUpdate(SPEC, attempt=1, version=0, parameters=np.ones(3), state=None, num_updates=0, room=room)
    assert asked == [24]
    for version in range(1, 4):
        update.apply(0, np.ones(3), 1.0)
        assert asked == [24] * (version + 1)
        update.commit()
        assert asked == [24] * (version + 1)


def test_a_version_is_one_flat_vector_in_which_its_messages_lie():
    parameters = np.arange(600_000, dtype=np.float32)
    network = {"inputs": 599_999, "layers": [{"units": 1}]}
    spec = read_spec({"network": network, "loss": "norm", "batch_size": 8, "epochs": 1})
    update = ParameterUpdate(spec, attempt=1, version=0, parameters=parameters, state=None, num_updates=0)
    np.testing.assert_array_equal(update.parameters, parameters)
    assert len(update.messages) == 3
    for message in update.messages:
        lo, hi = update.chunking.range(message.chunk_index)
        part = update.parameters[lo:hi]
        assert np.frombuffer(message.data, np.float32).ctypes.data == part.ctypes.data
        assert len(message.data) == part.nbytes


def test_a_message_cannot_be_written():
    update = update_of(np.zeros(NUM_PARAMETERS, np.float32), OPTIMIZERS["sgd"], 0.5)
    for message in (update.messages[0], update.apply(0, np.ones(NUM_PARAMETERS, np.float32), 1.0)):
        with pytest.raises(TypeError):
            message.data[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        update.parameters[0] = 0.0


def cut_into_pieces(optimizer, **changes):
    """Blocks of the norms that have several chunks."""
    network = {"inputs": 300, "layers": [{"units": 200}, {"units": 100}]}
    fields = {"network": network, "loss": "norm", "batch_size": 8, "epochs": 1, "optimizer": optimizer}
    spec = read_spec(fields | changes)
    values = np.random.default_rng(1).normal(size=Layout.from_spec(spec).num_parameters).astype(np.float32)
    made = [
        ParameterUpdate(spec, attempt=1, version=0, parameters=values, state=None, num_updates=0, far=far)
        for far in (False, True)
    ]
    assert [update.chunking.num_chunks for update in made] == [1, 2]
    return made, np.random.default_rng(2).normal(size=values.size).astype(np.float32)


@pytest.mark.parametrize("changes", [{}, {"clip_norm": 0.5}, {"penalty": {"l1": 0.1, "l2": 0.2}}])
def test_the_cut_into_chunks_does_not_show_in_the_bits(changes):
    (whole, cut), gradient = cut_into_pieces({"adam": {}}, **changes)
    for update in (whole, cut):
        update.measure_layers = True
        for index in reversed(range(update.chunking.num_chunks)):
            lo, hi = update.chunking.range(index)
            update.apply(index, gradient[lo:hi], 3.0)
        update.finish()
    assert cut.gradient_norm() == whole.gradient_norm()
    assert cut.penalty() == whole.penalty()
    for update in (whole, cut):
        update.commit()
    assert cut.parameters.tobytes() == whole.parameters.tobytes()
    np.testing.assert_allclose(cut.parameter_norms, whole.parameter_norms, rtol=1e-14)
    np.testing.assert_allclose(cut.gradient_norms, whole.gradient_norms, rtol=1e-14)


@pytest.mark.parametrize("optimizer", [{"adam": {}}, {"sgd": {"momentum": 0.9}}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_goes_nowhere_though_its_block_is_not_whole(optimizer, value):
    (_, cut), gradient = cut_into_pieces(optimizer)
    gradient[20] = value
    with pytest.raises(NotFiniteError, match="gradient of layer 2"):
        cut.apply(0, gradient[slice(*cut.chunking.range(0))], 1.0)
    assert cut.next_messages == []
