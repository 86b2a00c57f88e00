import numpy as np
import pytest

from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import job_pb2
from lockstep_worker.activations import ACTIVATIONS
from lockstep_worker.network import Network

RNG = np.random.default_rng(2)


def network_of(*activations, dtype="float32", dropout=0.0):
    layers = [{"units": 3 + i, "activation": name, "dropout": dropout} for i, name in enumerate(activations)]
    del layers[-1]["dropout"]
    fields = {"network": {"inputs": 4, "layers": layers}, "loss": "norm", "batch_size": 8, "epochs": 1}
    network = Network.from_spec(read_spec(fields | {"dtype": dtype}))
    layout = network.layout
    return network, layout.views(RNG.normal(size=layout.num_parameters).astype(layout.dtype))


def test_a_network_is_what_its_spec_says():
    network, _ = network_of("relu", "tanh", "softmax", dtype="float64", dropout=0.25)
    assert network.layout.sizes == (4, 3, 4, 5)
    assert network.layout.dtype == np.float64
    expected = (job_pb2.ACTIVATION_RELU, job_pb2.ACTIVATION_TANH, job_pb2.ACTIVATION_SOFTMAX)
    assert network.activations == tuple(ACTIVATIONS[number] for number in expected)
    assert network.dropouts == (0.25, 0.25, 0.0)


def test_a_layer_without_an_activation_is_the_identity():
    layers = [job_pb2.Layer(units=2)]
    network = Network.from_spec(job_pb2.JobSpec(network=job_pb2.Network(inputs=1, layers=layers)))
    assert network.activations == (ACTIVATIONS[job_pb2.ACTIVATION_IDENTITY],)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prediction_goes_through_the_layers(dtype):
    network, parameters = network_of("tanh", "relu", "identity", dtype=dtype)
    x = RNG.normal(size=(6, 4)).astype(dtype)
    (w2, b2), (w3, b3), (w4, b4) = parameters
    expected = np.maximum(np.tanh(x @ w2 + b2) @ w3 + b3, 0) @ w4 + b4
    predicted = network.predict(parameters, x)
    assert predicted.dtype == dtype
    np.testing.assert_array_equal(predicted, expected)


def test_dropout_is_for_training_only():
    network, parameters = network_of("identity", "identity", dropout=0.9)
    x = RNG.normal(size=(50, 4)).astype(np.float32)
    (w2, b2), (w3, b3) = parameters
    np.testing.assert_array_equal(network.predict(parameters, x), (x @ w2 + b2) @ w3 + b3)


def test_rows_are_predicted_in_blocks_of_8192():
    network, parameters = network_of("sigmoid", "softmax")
    x = RNG.normal(size=(8200, 4)).astype(np.float32)
    predicted = network.predict(parameters, x)
    np.testing.assert_array_equal(predicted[:8192], network.predict(parameters, x[:8192]))
    np.testing.assert_array_equal(predicted[8192:], network.predict(parameters, x[8192:]))


def test_any_numbers_are_taken_and_none_are_changed():
    network, parameters = network_of("relu", "identity")
    x = np.asfortranarray(RNG.integers(-3, 3, (10, 4)))
    before = x.copy()
    predicted = network.predict(parameters, x)
    np.testing.assert_array_equal(predicted, network.predict(parameters, x.astype(np.float32)))
    np.testing.assert_array_equal(x, before)


def test_no_rows_give_no_predictions():
    network, parameters = network_of("relu", "identity")
    assert network.predict(parameters, np.empty((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 5), (1, 2, 4)])
def test_rows_of_another_shape_are_refused(shape):
    network, parameters = network_of("relu", "identity")
    with pytest.raises(ValueError, match=r"x must have shape \(N, 4\), got \(" + str(shape[0])):
        network.predict(parameters, np.zeros(shape, np.float32))
