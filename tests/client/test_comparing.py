"""Where two records part, and what differs in what they were given: made-up records, no server."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.comparing import Difference, Parting, Record, compare, spec_differences
from lockstep_proto.spec import read_spec
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from tests.client.samples import SPEC

NUMERICS = NumericsFingerprint(numpy_version="2.0", blas_core="Haswell")
OTHER = NumericsFingerprint(numpy_version="2.0", blas_core="Zen")


def record(lo: int = 0, hi: int = 10, **changes: Any) -> Record:
    """Steps lo..hi−1, and a digest at every third version."""
    steps = list(range(lo, hi))
    whole = Record(
        spec=read_spec(SPEC),
        steps={
            "step": steps,
            "loss": [1 / (step + 1) for step in steps],
            "gradient_norm": [3 / (step + 2) for step in steps],
            "learning_rate": [0.1] * len(steps),
        },
        digests={(version, "ledger"): f"digest {version}" for version in range(lo, hi + 1) if version % 3 == 0},
        data={"training": "aaa", "validation": ""},
        numerics={("numerics", None): NUMERICS, ("server_numerics", None): NUMERICS},
    )
    return replace(whole, **changes)


def changed(original: Record, quantity: str, step: int, value: Any) -> Record:
    if quantity == "digest":
        return replace(original, digests={**original.digests, (step, "ledger"): value})
    columns = {name: list(column) for name, column in original.steps.items()}
    columns[quantity][columns["step"].index(step)] = value
    return replace(original, steps=columns)


def test_equal_records_have_no_difference() -> None:
    found = compare(record(), record())
    assert found.parting is None
    assert found.equal
    assert (found.lo, found.hi, found.num_steps, found.num_digests) == (0, 10, 10, 4)
    assert found.spec == found.data == found.numerics == ()


@pytest.mark.parametrize("quantity", ["loss", "gradient_norm"])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_one_bit_of_one_number_is_found(quantity: str, step: int) -> None:
    a = record()
    value = a.steps[quantity][step]
    other = math.nextafter(value, math.inf)
    found = compare(a, changed(record(), quantity, step, other))
    assert found.parting == Parting(step, quantity, value, other)
    assert not found.equal
    assert str(found.parting) == f"step {step}: {quantity.replace('_', ' ')} {value!r} and {other!r}"


def test_one_digest_is_found() -> None:
    found = compare(record(), changed(record(), "digest", 6, "f" * 64))
    assert found.parting == Parting(6, "digest", "digest 6", "f" * 64)
    assert str(found.parting) == "version 6: digest digest 6… and ffffffffffffffff…"


def test_the_last_digest_counts_though_no_step_starts_from_it() -> None:
    assert compare(record(hi=9), changed(record(hi=9), "digest", 9, "other")).parting == Parting(
        9, "digest", "digest 9", "other"
    )


def test_the_digest_of_a_model_is_compared_beside_that_of_the_ledger() -> None:
    a = record()
    both = replace(a, digests={**a.digests, (9, "model"): "digest 9"})
    assert compare(both, both).num_digests == 4
    for where in ("ledger", "model"):
        other = replace(both, digests={**both.digests, (9, where): "other"})
        assert compare(both, other).parting == Parting(9, "digest", "digest 9", "other")


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ([("loss", 5), ("gradient_norm", 4)], ("gradient_norm", 4)),
        ([("gradient_norm", 5), ("loss", 5)], ("loss", 5)),
        ([("loss", 6), ("digest", 6)], ("digest", 6)),
        ([("gradient_norm", 5), ("digest", 6)], ("gradient_norm", 5)),
        ([("digest", 9), ("digest", 3)], ("digest", 3)),
    ],
)
def test_of_several_differences_the_first_in_the_order_of_computation_is_told(
    changes: list[tuple[str, int]], first: tuple[str, int]
) -> None:
    b = record()
    for quantity, step in changes:
        b = changed(b, quantity, step, "other" if quantity == "digest" else -1.0)
    parting = compare(record(), b).parting
    assert parting is not None
    assert (parting.quantity, parting.step) == first


def test_zeros_of_two_signs_differ_and_equal_nans_do_not() -> None:
    a, b = (changed(record(), "loss", 3, value) for value in (0.0, -0.0))
    assert compare(a, b).parting == Parting(3, "loss", 0.0, -0.0)
    nan = changed(record(), "loss", 3, math.nan)
    assert compare(nan, changed(record(), "loss", 3, math.nan)).equal


def test_only_what_both_have_is_compared() -> None:
    found = compare(record(0, 8), record(5, 12))
    assert (found.lo, found.hi, found.num_steps, found.num_digests) == (5, 8, 3, 1)
    assert found.equal
    assert compare(changed(record(0, 8), "loss", 4, -1.0), record(5, 12)).equal


def test_nothing_in_common_is_not_equality() -> None:
    found = compare(record(0, 3, digests={}), record(7, 9, digests={}))
    assert found.parting is None
    assert (found.num_steps, found.num_digests) == (0, 0)
    assert not found.equal


def test_rows_in_another_order_are_the_same_rows() -> None:
    a = record()
    backwards = replace(a, steps={name: list(reversed(column)) for name, column in a.steps.items()})
    assert compare(a, backwards).equal


@given(st.sets(st.integers(0, 60), max_size=30), st.sets(st.integers(0, 60), max_size=30), st.integers(0, 60))
def test_the_first_difference_is_that_of_a_plain_loop(mine: set[int], others: set[int], bad_from: int) -> None:
    def columns(steps: set[int], bad: bool) -> dict[str, list[Any]]:
        order = sorted(steps)
        loss = [step + 0.5 + (0.1 if bad and step >= bad_from else 0.0) for step in order]
        return {"step": list(order), "loss": loss, "gradient_norm": [1.0] * len(order)}

    a, b = record(steps=columns(mine, False), digests={}), record(steps=columns(others, True), digests={})
    common = sorted(mine & others)
    expected = next((step for step in common if step >= bad_from), None)
    found = compare(a, b)
    assert found.num_steps == len(common)
    assert (found.parting.step if found.parting else None) == expected


# What they were given


def test_fields_of_specs_that_differ_are_named_in_the_order_of_the_schema() -> None:
    a = read_spec(SPEC)
    b = read_spec(
        SPEC
        | {
            "seed": 8,
            "optimizer": {"adam": {}},
            "clip_norm": 1.0,
            "network": {"inputs": 4, "layers": [{"units": 6}, {"units": 3, "activation": "softmax"}]},
            "name": "other",
        }
    )
    assert list(spec_differences(a, b)) == [
        Difference("name", "small", "other"),
        Difference("network.layers[0].units", 5, 6),
        Difference("network.layers[0].activation", "tanh", "identity"),
        Difference("optimizer.sgd.learning_rate", 0.1, None),
        Difference("optimizer.sgd.momentum", 0.5, None),
        Difference("optimizer.adam.learning_rate", None, 0.001),
        Difference("optimizer.adam.beta1", None, 0.9),
        Difference("optimizer.adam.beta2", None, 0.999),
        Difference("optimizer.adam.epsilon", None, 1e-8),
        Difference("clip_norm", None, 1.0),
        Difference("seed", 7, 8),
    ]
    assert list(spec_differences(a, a)) == []


def test_lists_of_different_length_differ_in_what_one_lacks() -> None:
    a = read_spec(SPEC | {"data": {"path": "a.csv", "target": ["a", "b", "c"]}})
    b = read_spec(SPEC | {"data": {"path": "a.csv", "target": ["a"]}})
    lacks = [Difference("data.target[1]", "b", None), Difference("data.target[2]", "c", None)]
    assert list(spec_differences(a, b)) == lacks


def test_data_that_differ_are_named_and_data_that_were_never_loaded_are_not() -> None:
    other = record(data={"training": "bbb", "validation": "ccc"})
    assert compare(record(), other).data == (Difference("training", "aaa", "bbb"),)
    assert compare(other, record(data={"training": "bbb", "validation": "ddd"})).data == (
        Difference("validation", "ccc", "ddd"),
    )
    assert compare(record(), record(data={"training": "", "validation": ""})).data == ()


def test_numerics_that_differ_are_named_once_by_field() -> None:
    b = {("numerics", None): OTHER, ("server_numerics", None): NUMERICS, ("numerics", 3): OTHER}
    found = compare(record(numerics={("numerics", None): NUMERICS, ("numerics", 3): NUMERICS}), record(numerics=b))
    assert found.numerics == (Difference("numerics.blas_core", "Haswell", "Zen"),)


def test_numerics_that_changed_under_way_are_named() -> None:
    a = {("numerics", None): NUMERICS, ("server_numerics", 6): NUMERICS}
    found = compare(record(numerics=a), record(numerics=a | {("server_numerics", 6): OTHER}))
    assert found.numerics == (Difference("server_numerics.blas_core", "Haswell", "Zen"),)


def test_a_job_that_never_ran_has_no_numerics_that_could_differ() -> None:
    never = {("numerics", None): NumericsFingerprint(), ("server_numerics", None): NumericsFingerprint()}
    assert compare(record(), record(numerics=never)).numerics == ()
