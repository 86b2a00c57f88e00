"""Arrays and frames as uploads: what is taken, what is refused and in which words."""

import io
from typing import Any

import numpy as np
import pytest

from lockstep.arrays import pack
from lockstep.errors import InvalidDataError
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import job_pb2

X = np.arange(24.0).reshape(8, 3)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])


def spec(outputs: int = 3, loss: str = "squared_error", activation: str = "identity", **more: Any) -> job_pb2.JobSpec:
    network = {"inputs": 3, "layers": [{"units": outputs, "activation": activation}]}
    return read_spec({"network": network, "loss": loss, "batch_size": "full", "epochs": 1, "shards": 4} | more)


CLASSIFIER = spec(loss="cross_entropy", activation="softmax")
BINARY = spec(outputs=1, loss="binary_cross_entropy", activation="sigmoid")


def packed(data: Any, of: job_pb2.JobSpec = CLASSIFIER, *, training: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    content, weighted = pack(data, of, "data", training=training)
    arrays = dict(np.load(io.BytesIO(content)))
    assert weighted == ("weight" in arrays)
    return arrays


def refusal(data: Any, of: job_pb2.JobSpec = CLASSIFIER, *, training: bool = True) -> str:
    with pytest.raises(InvalidDataError) as caught:
        pack(data, of, "data", training=training)
    return str(caught.value)


class Frame:
    """What a data frame or series has."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def to_numpy(self) -> Any:
        return self._values


# What is taken


def test_features_have_the_type_of_the_job_and_targets_their_own() -> None:
    arrays = packed((X, LABELS))
    assert arrays["x"].dtype == np.float32
    np.testing.assert_array_equal(arrays["x"], X)
    np.testing.assert_array_equal(arrays["y"], LABELS)
    assert packed((X, LABELS), spec(dtype="float64"))["x"].dtype == np.float64


@pytest.mark.parametrize("x", [X.tolist(), Frame(X), X.astype(object), np.asfortranarray(X), X[::-1][::-1]])
def test_lists_frames_and_any_memory_layout_are_the_same_upload(x: Any) -> None:
    assert pack((x, LABELS), CLASSIFIER, "data", training=True) == pack((X, LABELS), CLASSIFIER, "data", training=True)


def test_the_same_arrays_give_the_same_bytes_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pack((X, LABELS), CLASSIFIER, "data", training=True)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert pack((X, LABELS), CLASSIFIER, "data", training=True) == before
    assert pack((X, LABELS[::-1]), CLASSIFIER, "data", training=True) != before


def test_weights_go_along() -> None:
    weight = np.linspace(0, 1, 8, dtype=np.float32)
    np.testing.assert_array_equal(packed((X, LABELS, weight))["weight"], weight.astype(np.float64))


@pytest.mark.parametrize(
    ("y", "of"),
    [
        (LABELS.astype(float), CLASSIFIER),
        (np.eye(3)[LABELS], CLASSIFIER),
        (np.full((8, 3), 1 / 3, np.float32), CLASSIFIER),
        (LABELS > 0, BINARY),
        ((LABELS > 0)[:, None], BINARY),
        (np.linspace(0, 1, 8), BINARY),
        (X - 20, spec()),
        (X[:, 0] - 20, spec(outputs=1)),
    ],
)
def test_targets_are_labels_or_values(y: Any, of: job_pb2.JobSpec) -> None:
    np.testing.assert_array_equal(packed((X, y), of)["y"], y)


def test_validation_may_have_fewer_rows_than_shards() -> None:
    assert len(packed((X[:1], LABELS[:1]), training=False)["x"]) == 1
    assert refusal((X[:3], LABELS[:3])) == "data has 3 rows, fewer than shards (4); set shards to at most 3"


# What is refused


@pytest.mark.parametrize(
    ("data", "got"),
    [(X, "a ndarray"), ((X,), "1 of them"), ((X, LABELS, X, X), "4 of them"), ("rows.csv", "a str"), ({}, "a dict")],
)
def test_data_are_features_and_targets(data: Any, got: str) -> None:
    assert refusal(data) == f"data must be (X, y) or (X, y, weight), got {got}"


@pytest.mark.parametrize("x", [X[:, :2], X[0], X[None]])
def test_features_have_the_networks_shape(x: Any) -> None:
    assert refusal((x, LABELS)) == f"data X must have shape (rows, 3) for network.inputs = 3, got {x.shape}"


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (LABELS[:5], "data X has 8 rows, y has shape (5,)"),
        (3, "data X has 8 rows, y has shape ()"),
        (X[:, :2], "data y must have shape (8,) or (8, 3), got (8, 2)"),
        (LABELS[:, None], "data y must have shape (8,) or (8, 3), got (8, 1)"),
    ],
)
def test_targets_have_a_row_for_each_row(y: Any, said: str) -> None:
    assert refusal((X, y)) == said


@pytest.mark.parametrize(("label", "row"), [(3, 0), (-1, 4), (1.5, 7)])
def test_labels_out_of_range_are_named(label: float, row: int) -> None:
    y = LABELS.astype(float)
    y[row] = label
    classes = "class labels are whole numbers from 0 to 2 (the last layer's units)"
    assert refusal((X, y)) == f"data y has {float(label)} at row {row}; {classes}"


@pytest.mark.parametrize(
    ("y", "of", "said"),
    [
        (
            np.eye(3)[LABELS] * 2,
            CLASSIFIER,
            "data y has 2.0 at row 0, column 0; this loss takes probabilities, from 0 to 1",
        ),
        (
            np.eye(3)[LABELS] - 0.5,
            CLASSIFIER,
            "data y has -0.5 at row 0, column 1; this loss takes probabilities, from 0 to",
        ),
        (np.full((8, 3), 0.3), CLASSIFIER, "data y, summed over its columns, has 0.9"),
        (LABELS, BINARY, "data y has 2.0 at row 2; this loss takes probabilities, from 0 to 1"),
    ],
)
def test_cross_entropies_take_probabilities(y: Any, of: job_pb2.JobSpec, said: str) -> None:
    assert refusal((X, y), of).startswith(said)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["X", "y", "weight"])
def test_values_that_are_not_finite_are_named_by_row_and_column(value: float, part: str) -> None:
    data = {"X": X.copy(), "y": LABELS.astype(float), "weight": np.ones(8)}
    data[part][(2, 1) if part == "X" else 2] = value
    place = "row 2, column 1" if part == "X" else "row 2"
    assert refusal(tuple(data.values())) == f"data {part} has {value} at {place}; remove or fill such rows"


def test_a_value_too_large_for_the_jobs_type_is_named() -> None:
    x = X.copy()
    x[5, 2] = 1e300
    assert refusal((x, LABELS)) == "data X has 1e+300 at row 5, column 2; it is too large for float32"
    assert packed((x, LABELS), spec(dtype="float64"))["x"][5, 2] == 1e300
    assert refusal((X, x[:, 2]), spec(outputs=1)) == "data y has 1e+300 at row 5; it is too large for float32"


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([["a", "b", "c"]] * 8, "data X must hold numbers, got <U1"),
        (np.full((8, 3), "2020-01-01", "datetime64[D]"), "data X must hold numbers, got datetime64[D]"),
        (X * 1j, "data X must hold numbers, got complex128"),
        ([[1, 2, 3]] * 7 + [[1, 2]], "data X is no array: "),
        (np.full((8, 3), None), "data X has nan at row 0, column 0"),
    ],
)
def test_what_is_no_number_is_refused(x: Any, said: str) -> None:
    assert refusal((x, LABELS)).startswith(said)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (np.ones(7), "data weight must have shape (8,), got (7,)"),
        (np.ones((8, 1)), "data weight must have shape (8,), got (8, 1)"),
        (np.arange(8.0) - 1, "data weight has -1.0 at row 0; weights are at least 0"),
        (np.zeros(8), "data weight is 0 in all rows; at least one row has to count"),
    ],
)
def test_wrong_weights_are_refused(weight: Any, said: str) -> None:
    assert refusal((X, LABELS, weight)) == said


def test_no_rows_are_refused() -> None:
    assert refusal((X[:0], LABELS[:0])) == "data has no rows"
    assert refusal((X[:0], LABELS[:0]), training=False) == "data has no rows"


def test_large_whole_numbers_are_rounded_as_in_a_file_of_text() -> None:
    value = 2**54 + 2**30 + 1  # halfway between two float32, but for its last bit, which float64 does not hold
    x = packed((np.full((4, 3), value), [0, 1, 0, 1]))["x"]
    assert x[0, 0] == np.float32(float(str(value)))
    assert x[0, 0] != np.float32(np.int64(value)), "or this value shows nothing"
