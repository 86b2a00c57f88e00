"""A trained network: what it predicts, against a forward pass written here, and its file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import lockstep
from lockstep.errors import InvalidModelError
from lockstep.model import Model
from lockstep_proto.spec import read_spec

SIZES = (5, 7, 4, 3)
RNG = np.random.default_rng(11)
FLAT = RNG.normal(size=5 * 7 + 7 + 7 * 4 + 4 + 4 * 3 + 3)
X = RNG.normal(size=(20, 5))


def make(activation: str = "softmax", loss: str = "cross_entropy", outputs: int = 3, dtype: str = "float64") -> Model:
    layers = [
        {"units": 7, "activation": "tanh", "dropout": 0.5},
        {"units": 4, "activation": "relu"},
        {"units": outputs, "activation": activation},
    ]
    spec = {"network": {"inputs": 5, "layers": layers}, "loss": loss, "batch_size": "full", "epochs": 1, "dtype": dtype}
    return Model(read_spec(spec), FLAT[: 74 + 5 * outputs])


def forward(outputs: int = 3) -> np.ndarray[Any, Any]:
    """The net input of the last layer."""
    w2, b2, w3, b3, w4, b4 = np.split(FLAT[: 74 + 5 * outputs], [35, 42, 70, 74, 74 + 4 * outputs])
    z = np.tanh(X @ w2.reshape(5, 7) + b2)
    z = np.maximum(z @ w3.reshape(7, 4) + b3, 0)
    return np.asarray(z @ w4.reshape(4, outputs) + b4)


def sigmoid(m: Any) -> Any:
    return 1 / (1 + np.exp(-m))


# Predicting


def test_a_classifier_gives_classes_and_their_probabilities() -> None:
    m = forward()
    expected = np.exp(m) / np.exp(m).sum(axis=1, keepdims=True)
    model = make()
    np.testing.assert_allclose(model.outputs(X), expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-12)
    assert model.predict(X).tolist() == expected.argmax(axis=1).tolist()


def test_a_regression_gives_values() -> None:
    np.testing.assert_allclose(make("identity", "squared_error").predict(X), forward(), rtol=1e-12)
    assert make("identity", "squared_error", outputs=1).predict(X).shape == (20,)


def test_one_sigmoid_unit_tells_two_classes_apart() -> None:
    model = make("sigmoid", "binary_cross_entropy", outputs=1)
    p = sigmoid(forward(1))
    np.testing.assert_allclose(model.predict_proba(X), np.hstack([1 - p, p]), rtol=1e-12)
    assert model.predict(X).tolist() == (p[:, 0] >= 0.5).astype(int).tolist()


def test_several_sigmoid_units_are_as_many_yes_or_no() -> None:
    model = make("sigmoid", "binary_cross_entropy")
    assert model.predict(X).tolist() == (sigmoid(forward()) >= 0.5).astype(int).tolist()
    np.testing.assert_allclose(model.predict_proba(X), sigmoid(forward()), rtol=1e-12)


def test_a_regression_has_no_probabilities() -> None:
    with pytest.raises(TypeError, match="predict_proba needs a classifier"):
        make("identity", "squared_error").predict_proba(X)


def test_prediction_takes_lists_frames_and_any_memory_layout() -> None:
    class Frame:
        def to_numpy(self) -> Any:
            return X

    expected = make().outputs(X)
    for x in (X.tolist(), Frame(), np.asfortranarray(X)):
        np.testing.assert_array_equal(make().outputs(x), expected)


@pytest.mark.parametrize("x", [X[0], X[:, :4]])
def test_features_must_have_the_networks_shape(x: Any) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, 5\), got \("):
        make().predict(x)


# Scores


def test_the_score_of_a_classifier_is_its_accuracy() -> None:
    classes = forward().argmax(axis=1)
    y = np.where(np.arange(20) < 5, (classes + 1) % 3, classes)
    assert make().score(X, y) == 0.75
    assert make().score(X, np.eye(3)[y]) == 0.75
    model = make("sigmoid", "binary_cross_entropy", outputs=1)
    assert model.score(X, forward(1) >= 0) == model.score(X, (forward(1) >= 0)[:, 0]) == 1.0


def test_the_score_of_a_regression_is_the_coefficient_of_determination() -> None:
    from sklearn.metrics import r2_score

    model = make("identity", "squared_error", outputs=1)
    y = forward(1)[:, 0] + RNG.normal(size=20)
    assert model.score(X, y) == pytest.approx(r2_score(y, forward(1)[:, 0]), rel=1e-9)
    assert model.score(X, np.ones(20)) == 0.0, "nothing to explain, and missed"
    with pytest.raises(ValueError, match=r"y must have shape \(20,\), got \(19,\)"):
        model.score(X, y[:-1])


# Parameters


def test_weights_and_biases_are_the_layers_own_and_read_only() -> None:
    model = make()
    assert [w.shape for w in model.weights] == [(5, 7), (7, 4), (4, 3)]
    assert [b.shape for b in model.biases] == [(7,), (4,), (3,)]
    np.testing.assert_array_equal(model.weights[1], FLAT[42:70].reshape(7, 4))
    np.testing.assert_array_equal(model.biases[2], FLAT[-3:])
    with pytest.raises(ValueError, match="read-only"):
        model.weights[0][0, 0] = 1.0


def test_a_model_and_what_it_was_made_of_do_not_share_memory() -> None:
    flat = FLAT.copy()
    model = Model(make().spec, flat)
    flat[0] += 1.0
    assert model.digest == make().digest


def test_the_digest_is_of_layout_and_parameters() -> None:
    assert make().digest == make().digest
    assert len({make().digest, make(dtype="float32").digest, make(outputs=2).digest}) == 3
    assert repr(make()) == f"<Model 5-7-4-3 float64 sha256:{make().digest[:12]}>"


# Files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_model_comes_back_bit_by_bit(tmp_path: Path, dtype: str) -> None:
    model = make(dtype=dtype)
    path = model.save(tmp_path / "a.safetensors")
    loaded = Model.load(path)
    assert loaded.digest == model.digest
    assert loaded.spec == model.spec
    assert all(np.array_equal(a, b) for a, b in zip(loaded.weights, model.weights, strict=True))
    assert loaded.outputs(X).tobytes() == model.outputs(X).tobytes()
    assert [make(dtype=dtype).save(tmp_path / f"{i}").read_bytes() for i in range(9)] == [path.read_bytes()] * 9


def test_the_file_is_safetensors_with_the_layers_numbers_of_the_text(tmp_path: Path) -> None:
    with safe_open(make().save(tmp_path / "m.safetensors"), framework="numpy") as file:
        assert set(file.keys()) == {"W2", "b2", "W3", "b3", "W4", "b4"}
        np.testing.assert_array_equal(file.get_tensor("W3"), FLAT[42:70].reshape(7, 4))
        assert json.loads(file.metadata()["spec"])["network"]["inputs"] == 5


def test_arrays_that_are_not_contiguous_are_saved_as_they_are_seen(tmp_path: Path) -> None:
    every_other = np.repeat(FLAT, 2)[::2]
    assert not every_other.flags.c_contiguous
    model = Model(make().spec, every_other)
    model._views = [(np.asfortranarray(w), b) for w, b in model._views]
    assert Model.load(model.save(tmp_path / "m.safetensors")).digest == make().digest


def tensors(model: Model) -> dict[str, Any]:
    pairs = enumerate(zip(model.weights, model.biases, strict=True), start=2)
    return {name: array for l, (w, b) in pairs for name, array in ((f"W{l}", w.copy()), (f"b{l}", b.copy()))}


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())


def damaged(path: Path, kind: str) -> None:
    """Write a file that is no sound model."""
    model = make()
    content, known = model.to_bytes(), metadata(model.save(path))
    arrays = tensors(model)
    if kind == "flipped":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif kind == "short":
        path.write_bytes(content[:-5])
    elif kind == "text":
        path.write_text("W2,b2\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other":
        save_file(arrays, path)
    elif kind == "missing":
        save_file({name: array for name, array in arrays.items() if name != "b3"}, path, metadata=known)
    elif kind == "shape":
        save_file(arrays | {"W3": np.zeros((4, 7))}, path, metadata=known)
    elif kind == "type":
        save_file(arrays | {"W3": np.zeros((7, 4), np.float32)}, path, metadata=known)
    elif kind == "newer":
        save_file(arrays, path, metadata=known | {"spec": '{"gates": 3}'})
    elif kind == "no spec":
        save_file(arrays, path, metadata={"format": "lockstep.model.v1"})
    elif kind == "no layers":
        save_file(arrays, path, metadata=known | {"spec": "{}"})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("flipped", "its digest does not fit its content: the file is damaged"),
        ("short", "is no whole safetensors file: "),
        ("text", "is no whole safetensors file: "),
        ("empty", "is no whole safetensors file: "),
        ("other", "is no Lockstep model"),
        ("missing", "must have b3 of shape (4,) and type float64"),
        ("shape", "must have W3 of shape (7, 4) and type float64"),
        ("type", "must have W3 of shape (7, 4) and type float64"),
        ("newer", "its spec is not of this version of Lockstep: "),
        ("no spec", "its spec is not of this version of Lockstep: "),
        ("no layers", "its spec has no layers"),
    ],
)
def test_a_file_that_is_no_sound_model_is_refused_by_name(tmp_path: Path, kind: str, said: str) -> None:
    path = tmp_path / "model.safetensors"
    damaged(path, kind)
    with pytest.raises(InvalidModelError) as caught:
        Model.load(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent: there is no such file"):
        Model.load(tmp_path / "absent")
    with pytest.raises(IsADirectoryError, match="is a directory, not a model"):
        Model.load(tmp_path)


@pytest.mark.cluster
def test_a_trained_model_predicts_as_it_was_validated(trained: lockstep.Job) -> None:
    from tests.client.samples import X, Y

    model = trained.model()
    assert model.score(X[:9], Y[:9]) == trained.validation_accuracy
    chances = model.predict_proba(X[:9]).astype(np.float64)
    assert -np.log(chances[range(9), Y[:9]]).mean() == pytest.approx(trained.validation_loss, rel=1e-5)
