"""What people and programs read of a comparison."""

import json
from typing import Any

import pytest

from lockstep import output, verdicts
from lockstep.comparing import Comparison, Difference, Parting
from lockstep.job import Job
from lockstep.verifying import Verification
from lockstep_proto.v1 import service_pb2

LOSS = Parting(437, "loss", 0.1, 0.10000000000000002)
DIGEST = Parting(300, "digest", "a" * 64, "b" * 64)


def comparison(**changes: Any) -> Comparison:
    fields = {"parting": None, "lo": 300, "hi": 900, "num_steps": 600, "num_digests": 31}
    return Comparison(**fields | {"spec": (), "data": (), "numerics": ()} | changes)  # type: ignore[arg-type]


def job(job_id: str, step: int = 900) -> Job:
    return Job(None, service_pb2.Job(id=job_id, step=step))  # type: ignore[arg-type]


def verification(**changes: Any) -> Verification:
    return Verification("abcdef", 300, 900, comparison(**changes))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["equal: steps 300..900, 31 digests"]),
        ({"num_digests": 1}, ["equal: steps 300..900, 1 digest"]),
        (
            {"num_steps": 598},
            ["equal: steps 300..900, 31 digests", "not recorded, and so not compared: 2 steps"],
        ),
        ({"num_steps": 0, "num_digests": 0}, ["not verified: nothing is recorded of steps 300..900"]),
        (
            {"parting": LOSS},
            [
                "different: step 437: loss 0.1 and 0.10000000000000002 (recorded and recomputed; steps 300..900 were "
                "recomputed)"
            ],
        ),
        (
            {
                "parting": DIGEST,
                "data": (Difference("training", "c" * 64, "d" * 64),),
                "numerics": (Difference("numerics.blas_core", "Haswell", "Zen"),),
            },
            [
                "different: version 300: digest aaaaaaaaaaaaaaaa… and bbbbbbbbbbbbbbbb… (recorded and recomputed; "
                "steps 300..900 were recomputed)",
                "training data: fingerprint cccccccccccccccc… and dddddddddddddddd… (at the time and now)",
                "numerics: numerics.blas_core: Haswell and Zen (at the time and now)",
            ],
        ),
    ],
)
def test_a_verification_in_words(changes: dict[str, Any], lines: list[str]) -> None:
    assert list(verdicts.verification_lines(verification(**changes))) == lines


def test_a_verification_in_json() -> None:
    found = verdicts.verification_fields(verification(parting=LOSS, spec=(Difference("name", "a", "a-verify"),)))
    assert json.loads(output.to_json(found)) == {
        "job": "abcdef",
        "from_step": 300,
        "to_step": 900,
        "equal": False,
        "parting": {"step": 437, "quantity": "loss", "a": 0.1, "b": 0.10000000000000002},
        "lo": 300,
        "hi": 900,
        "num_steps": 600,
        "num_digests": 31,
        "data": [],
        "numerics": [],
    }


@pytest.mark.parametrize(
    ("steps", "changes", "lines"),
    [
        ((900, 900), {}, ["no difference in 600 common steps, 31 digests"]),
        (
            (900, 1200),
            {"num_steps": 1},
            ["no difference in 1 common step, 31 digests", "job b has done 1200 steps, job a 900"],
        ),
        ((900, 900), {"num_steps": 0, "num_digests": 0}, ["no common steps: nothing can be compared"]),
        (
            (900, 1200),
            {
                "parting": LOSS,
                "spec": (
                    Difference("workers.max", 8, 2),
                    Difference("optimizer.sgd.nesterov", None, True),
                    Difference("seed", 0, 1),
                ),
                "data": (Difference("validation", "c" * 64, "d" * 64),),
            },
            [
                "different: step 437: loss 0.1 and 0.10000000000000002",
                "spec: workers.max: 8 and 2 (has no influence on the result)",
                "spec: optimizer.sgd.nesterov: not given and true",
                "spec: seed: 0 and 1",
                f"validation data: fingerprint {'c' * 16}… and {'d' * 16}… (of the first and of the second job)",
            ],
        ),
    ],
)
def test_a_comparison_in_words(steps: tuple[int, int], changes: dict[str, Any], lines: list[str]) -> None:
    assert list(verdicts.comparison_lines(job("a", steps[0]), job("b", steps[1]), comparison(**changes))) == lines


def test_a_comparison_in_json() -> None:
    found = json.loads(output.to_json(verdicts.comparison_fields(comparison(spec=(Difference("seed", 0, 1),)))))
    assert found["equal"] is True
    assert found["parting"] is None
    assert found["spec"] == [{"path": "seed", "a": 0, "b": 1}]
