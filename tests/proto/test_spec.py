import json
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep_proto.defaults import complete
from lockstep_proto.rules import check
from lockstep_proto.spec import SpecError, Violation, load_file, override, read_spec, to_dict
from lockstep_proto.v1 import job_pb2

GOOD = {
    "name": "digits",
    "network": {"inputs": 64, "layers": [{"units": 128, "activation": "relu"}, {"units": 10, "activation": "softmax"}]},
    "loss": "cross_entropy",
    "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}},
    "batch_size": 256,
    "epochs": 10,
    "shards": 8,
    "seed": 0,
    "workers": {"min": 1, "max": 8},
    "data": {"path": "train.csv", "target": "label"},
}


def changed(**changes):
    values = json.loads(json.dumps(GOOD))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = values
        for key in parents:
            place = place[int(key)] if key.isdecimal() else place.setdefault(key, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return values


def violations_of(values):
    with pytest.raises(SpecError) as caught:
        read_spec(values, require_data=True)
    return [str(violation) for violation in caught.value.violations]


# Each: what is changed, and what is said of it. A message can say the same unless it cannot even hold the value.
RULES = [
    ({"network__layers__1__units": 0}, ["network.layers[1].units: must be at least 1, got 0"]),
    ({"network__inputs": 0}, ["network.inputs: must be at least 1, got 0"]),
    ({"network__layers": []}, ["network.layers: must be 1 to 1000 layers, got 0"]),
    (
        {"network__layers__0__activation": "softmax"},
        ["network.layers[0].activation: softmax may only stand in the last layer"],
    ),
    (
        {"network__layers__1__units": 1},
        ["network.layers[1].units: must be at least 2 with softmax, got 1; one unit takes sigmoid"],
    ),
    ({"network__layers__0__dropout": 1.0}, ["network.layers[0].dropout: must be in [0, 1), got 1"]),
    ({"network__layers__1__dropout": 0.5}, ["network.layers[1].dropout: must not be in the last layer, got 0.5"]),
    (
        {"network__layers__1__activation": "relu"},
        ["loss: cross_entropy needs softmax in the last layer, got relu"],
    ),
    ({"loss": "binary_cross_entropy"}, ["loss: binary_cross_entropy needs sigmoid in the last layer, got softmax"]),
    (
        {"loss": None},
        ["loss: must be given: one of norm, squared_error, absolute_error, huber, cross_entropy, binary_cross_entropy"],
    ),
    ({"huber_delta": 2.0}, ["huber_delta: may only be given with loss = huber"]),
    ({"loss": "huber", "huber_delta": 0.0}, ["huber_delta: must be greater than 0, got 0"]),
    ({"optimizer__sgd__learning_rate": 0.0}, ["optimizer.sgd.learning_rate: must be greater than 0, got 0"]),
    ({"optimizer__sgd__momentum": 1.0}, ["optimizer.sgd.momentum: must be in [0, 1), got 1"]),
    ({"optimizer": {"sgd": {"nesterov": True}}}, ["optimizer.sgd.nesterov: needs momentum greater than 0, got 0"]),
    ({"optimizer": {"adam": {"beta2": 1.5}}}, ["optimizer.adam.beta2: must be in [0, 1), got 1.5"]),
    ({"optimizer": {"adamw": {"weight_decay": -1.0}}}, ["optimizer.adamw.weight_decay: must be at least 0, got -1"]),
    ({"schedule": {"step": {}}}, ["schedule.step.every_steps: must be at least 1, got 0"]),
    ({"schedule": {"exponential": {"decay": 2.0}}}, ["schedule.exponential.decay: must be in (0, 1], got 2"]),
    ({"schedule": {"cosine": {"steps": 0}}}, ["schedule.cosine.steps: must be at least 1, got 0"]),
    ({"schedule": {"warmup_steps": -1}}, ["schedule.warmup_steps: must be at least 0, got -1"]),
    ({"penalty": {"l2": -0.1}}, ["penalty.l2: must be at least 0, got -0.1"]),
    ({"clip_norm": 0.0}, ["clip_norm: must be greater than 0, got 0"]),
    ({"batch_size": 100}, ["batch_size: must be a multiple of shards (8), got 100; try 96 or 104"]),
    ({"batch_size": 3}, ["batch_size: must be a multiple of shards (8), got 3; try 8"]),
    ({"batch_size": 0}, ["batch_size: must be at least 1, got 0"]),
    ({"batch_size": None}, ['batch_size: must be given: a number of rows, or "full"']),
    ({"epochs": None}, ["epochs: epochs or steps must be given"]),
    ({"epochs": 0}, ["epochs: must be at least 1, got 0"]),
    (
        {"stopping": {"gradient_norm": 0.1}},
        [
            'stopping.gradient_norm: needs batch_size = "full": the gradient of a mini-batch is not that of Q, '
            "and its norm says nothing about convergence"
        ],
    ),
    ({"stopping": {"patience": 3}}, ["stopping.patience: needs validation data"]),
    ({"stopping": {"wall_time_s": 0.0}}, ["stopping.wall_time_s: must be greater than 0, got 0"]),
    ({"shards": 0}, ["shards: must be between 1 and 4096, got 0"]),
    ({"workers": {"min": 9}}, ["workers.min: must be at most shards (8), got 9"]),
    ({"workers": {"min": 4, "max": 2}}, ["workers.max: must be at least workers.min (4), got 2"]),
    ({"workers": {"wait_s": 0.0}}, ["workers.wait_s: must be greater than 0, got 0"]),
    ({"name": "no spaces"}, ["name: must be 1 to 64 letters, digits, '-', '_' or '.', got 'no spaces'"]),
    ({"data": None}, ["data: must be given: a path or an upload, and its target column"]),
    ({"data": {"target": "y"}}, ["data: needs a path or an upload"]),
    ({"data": {"path": "a.csv"}}, ["data.target: must name the target column"]),
    (
        {"data": {"path": "a.csv", "target": ["a", "b"]}},
        ["data.target: must be one column of class labels or 10 columns of values, got 2"],
    ),
    (
        {"data": {"path": "a.csv", "target": "y", "features": ["a"]}},
        ["data.features: must name network.inputs (64) columns, got 1"],
    ),
    ({"start_from": {}}, ["start_from: must name a job, or the file of a saved model"]),
    ({"start_from": {"job": ""}}, ["start_from: must name a job, or the file of a saved model"]),
    ({"start_from": {"version": 3}}, ["start_from: must name a job, or the file of a saved model"]),
    ({"start_from": {"job": "abcd", "version": -1}}, ["start_from.version: must be at least 0, got -1"]),
    (
        {"start_from": {"job": "abcd", "version": 0, "best": True}},
        ["start_from.best: may not be given with version, which names another"],
    ),
    (
        {"start_from": {"model": "m.safetensors", "version": 0, "best": True}},
        [
            "start_from.version: may only be given with a job; a saved model is one version",
            "start_from.best: may only be given with a job; a saved model is one version",
        ],
    ),
    (
        {"start_from": {"job": "abcd"}, "initial_parameters": {"initializer": "zeros"}},
        ["initial_parameters: may not be given with start_from, which gives the parameters"],
    ),
    ({"checkpoints": {"every_steps": 0}}, ["checkpoints.every_steps: must be at least 1, got 0"]),
    ({"checkpoints": {"every_s": 0.0}}, ["checkpoints.every_s: must be greater than 0, got 0"]),
    ({"audit": -0.5}, ["audit: must be in [0, 1], got -0.5"]),
    ({"audit": 1.5}, ["audit: must be in [0, 1], got 1.5"]),
    (
        {"dtype": "float64", "wire_dtype": "bfloat16"},
        ["wire_dtype: must be dtype (float64), or bfloat16 with float32; got bfloat16"],
    ),
    (
        {"dtype": "float32", "wire_dtype": "float64"},
        ["wire_dtype: must be dtype (float32), or bfloat16 with float32; got float64"],
    ),
    (
        {"network__layers__1__units": 0, "batch_size": 100, "clip_norm": -1.0},
        [
            "network.layers[1].units: must be at least 1, got 0",
            "clip_norm: must be greater than 0, got -1",
            "batch_size: must be a multiple of shards (8), got 100; try 96 or 104",
        ],
    ),
]

# What only a dict or a file can say.
SHAPES = [
    ({"epoch": 3}, ["epoch: is not known; did you mean 'epochs'?"]),
    ({"network__layers__0__unit": 3}, ["network.layers[0].unit: is not known; did you mean 'units'?"]),
    ({"epochs": "ten"}, ["epochs: must be a number, got 'ten'"]),
    ({"epochs": 2.5}, ["epochs: must be a whole number, got 2.5"]),
    ({"epochs": True}, ["epochs: must be a number, got True"]),
    ({"epochs": 2**63}, [f"epochs: must be between {-(2**63)} and {2**63 - 1}, got {2**63}"]),
    ({"batch_size": "ful"}, ["batch_size: must be a number of rows or \"full\", got 'ful'"]),
    (
        {"wire_dtype": "float16"},
        ["wire_dtype: must be one of float32, float64, bfloat16, got 'float16'; did you mean 'bfloat16'?"],
    ),
    ({"dtype": "float16"}, ["dtype: must be one of float32, float64, got 'float16'; did you mean 'float64'?"]),
    (
        {"optimizer": "adm"},
        ["optimizer: must be one of sgd, adagrad, rmsprop, adam, adamw, got 'adm'; did you mean 'adam'?"],
    ),
    ({"optimizer": {"sgd": {}, "adam": {}}}, ["optimizer: takes one of sgd, adam, got all of them"]),
    ({"start_from": {"job": "abcd", "model": "m"}}, ["start_from: takes one of job, model, got all of them"]),
    ({"initial_parameters": {"model": "m"}}, ["initial_parameters.model: is not known; the fields are initializer"]),
    ({"network": 3}, ["network: must be a table of fields, got 3"]),
    ({"name": 3}, ["name: must be a string, got 3"]),
    ({"clip_norm": float("inf")}, ["clip_norm: must be finite, got inf"]),
    ({"training": {"epochs": 3}}, ["training.epochs: is given at the top level, too (epochs)"]),
]


def message_of(values):
    message = job_pb2.JobSpec()
    from lockstep_proto.reader import fill

    assert not fill(message, values)
    return message


@pytest.mark.parametrize(("changes", "expected"), RULES)
def test_rules_are_the_same_from_dict_toml_json_and_message(changes, expected, tmp_path):
    values = changed(**changes)
    assert violations_of(values) == expected
    (tmp_path / "job.json").write_text(json.dumps(values))
    assert violations_of(tmp_path / "job.json") == expected
    (tmp_path / "job.toml").write_text(to_toml(values))
    assert violations_of(str(tmp_path / "job.toml")) == expected
    assert violations_of(message_of(values)) == expected


@pytest.mark.parametrize(("changes", "expected"), SHAPES)
def test_what_cannot_be_read_is_named_with_its_path(changes, expected, tmp_path):
    values = changed(**changes)
    found = violations_of(values)
    assert found[: len(expected)] == expected
    (tmp_path / "job.toml").write_text(to_toml(values))
    assert violations_of(tmp_path / "job.toml") == found


def to_toml(values):
    """TOML by inline tables: enough for these."""

    def inline(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return "inf" if value == float("inf") else json.dumps(value)

    return "\n".join(f"{key} = {inline(value)}" for key, value in values.items())


def test_a_good_spec_is_read_and_completed():
    spec = read_spec(GOOD, require_data=True)
    assert spec.network.layers[0].activation == job_pb2.ACTIVATION_RELU
    assert spec.batch_size.rows == 256
    assert list(spec.data.target) == ["label"]
    assert spec.dtype == job_pb2.DTYPE_FLOAT32
    assert spec.initial_parameters.initializer == job_pb2.INITIALIZER_GLOROT_UNIFORM


def test_names_stand_for_things_with_default_settings():
    spec = read_spec(changed(optimizer="adam", schedule="constant", initial_parameters="he_normal", batch_size="full"))
    assert spec.optimizer.adam.beta1 == 0.9
    assert spec.schedule.WhichOneof("kind") == "constant"
    assert spec.initial_parameters.initializer == job_pb2.INITIALIZER_HE_NORMAL
    assert spec.batch_size.full


@pytest.mark.parametrize(
    "start", [{"job": "abcd"}, {"job": "abcd", "version": 0}, {"job": "abcd", "best": True}, {"model": "m.safetensors"}]
)
def test_what_a_job_starts_from_takes_the_place_of_initial_parameters(start):
    spec = read_spec(GOOD | {"start_from": start})
    assert not spec.HasField("initial_parameters")
    assert to_dict(spec)["start_from"] == start
    assert read_spec(to_dict(spec)) == spec


def test_numbers_of_numpy_are_numbers():
    spec = read_spec(changed(epochs=3) | {"epochs": np.int64(3), "clip_norm": np.float32(0.5)})
    assert (spec.epochs, spec.clip_norm) == (3, 0.5)


def test_training_is_a_heading():
    values = changed(epochs=None, batch_size=None)
    assert read_spec(values | {"training": {"epochs": 7, "batch_size": 64}}) == read_spec(
        values | {"epochs": 7, "batch_size": 64}
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_travels_has_the_type_of_the_job_unless_it_says_otherwise(dtype):
    assert to_dict(read_spec(GOOD | {"dtype": dtype}))["wire_dtype"] == dtype
    assert to_dict(read_spec(GOOD | {"wire_dtype": "bfloat16"}))["wire_dtype"] == "bfloat16"


def test_completing_twice_changes_nothing():
    once = complete(message_of(GOOD))
    assert complete(once) == once


@given(
    st.fixed_dictionaries(
        {
            "name": st.from_regex(r"[a-z]{1,9}", fullmatch=True),
            "batch_size": st.one_of(st.just("full"), st.integers(1, 9).map(lambda n: 8 * n)),
            "epochs": st.integers(1, 10**9),
            "seed": st.integers(0, 2**64 - 1),
            "optimizer": st.sampled_from([{"adam": {"learning_rate": 0.5}}, "sgd", {"sgd": {"momentum": 0.5}}]),
            "initial_parameters": st.sampled_from(["he_uniform", "zeros", {"initializer": "he_normal"}]),
            "numerics": st.sampled_from(["any", "exact"]),
            "checkpoints": st.sampled_from([{"every_steps": 10}, {"every_s": 2.5}]),
            "audit": st.sampled_from([0.0, 0.25, 1.0]),
            "wire_dtype": st.sampled_from(["float32", "bfloat16"]),
        }
    )
)
def test_a_spec_comes_back_from_what_users_would_write(fields):
    spec = read_spec(GOOD | fields)
    assert read_spec(to_dict(spec)) == spec
    assert read_spec(json.loads(json.dumps(to_dict(spec)))) == spec


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "missing.toml: there is no such file"),
        ("bad.toml", b"a = = 1", "bad.toml: is not valid TOML: Invalid value (at line 1, column 5)"),
        ("bad.json", b"{", "bad.json: is not valid JSON: Expecting property name"),
        ("list.json", b"[]", "list.json: must hold a table of fields, got list"),
        ("latin.toml", b"name = '\xe9'", "latin.toml: is not a text file in UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=r".") as caught:
        read_spec(tmp_path / name)
    assert message in str(caught.value)


def test_a_directory_is_no_job_file(tmp_path):
    with pytest.raises(SpecError, match="is a directory, not a job file"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("epochs=3", ("epochs",), 3),
        ("training.epochs=3", ("epochs",), 3),
        ("network.layers.0.units=64", ("network", "layers", 0, "units"), 64),
        ("network.layers[1].activation=sigmoid", ("network", "layers", 1, "activation"), "sigmoid"),
        ("stopping.patience=2", ("stopping", "patience"), 2),
        ('name="x y"', ("name",), "x y"),
    ],
)
def test_overrides(assignment, path, value):
    place = override(GOOD, assignment)
    for key in path:
        place = place[key]
    assert place == value
    assert GOOD["epochs"] == 10, "the original stays"


def test_overrides_find_fields_below_the_heading():
    values = {"training": {"epochs": 5}}
    assert override(values, "training.epochs=3") == override(values, "epochs=3") == {"training": {"epochs": 3}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "an override is written PATH=VALUE, got 'epochs'"),
        ("network.layers.9.units=1", "network.layers.9: there is no such place in a list of 2"),
        ("epochs.x=1", "epochs.x: is below a value that has no fields"),
    ],
)
def test_overrides_that_make_no_sense(assignment, message):
    with pytest.raises(SpecError, match=r".") as caught:
        override(GOOD, assignment)
    assert str(caught.value) == message


def test_an_error_is_a_value_error_with_one_violation_a_line():
    error = SpecError([Violation("a", "is wrong"), Violation("", "b is missing")])
    assert isinstance(error, ValueError)
    assert str(error) == "a: is wrong\nb is missing"


@pytest.mark.parametrize("name", ["digits", "digits-path", "diabetes", "worked-rule"])
def test_the_examples_are_valid(name, request):
    path = request.config.rootpath / "examples" / f"{name}.toml"
    spec = read_spec(path, require_data=True)
    assert spec.name == name
    assert load_file(path) == tomllib.loads(path.read_text())


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        (lambda spec: setattr(spec, "epochs", 2**62), "epochs", "must be at most 1000000000"),
        (lambda spec: setattr(spec, "clip_norm", math.nan), "clip_norm", "must be finite, got nan"),
        (lambda spec: setattr(spec.workers, "wait_s", math.inf), "workers.wait_s", "must be finite, got inf"),
        (lambda spec: setattr(spec, "dtype", 77), "dtype", "must be one of float32, float64, got 77"),
        (
            lambda spec: setattr(spec.network.layers[0], "activation", 99),
            "network.layers[0].activation",
            "got 99",
        ),
    ],
)
def test_a_message_cannot_hold_what_a_dict_could_not(change, path, message):
    spec = complete(read_spec(GOOD))
    change(spec)
    found = [violation for violation in check(spec) if violation.path == path]
    assert len(found) == 1
    assert message in found[0].message
