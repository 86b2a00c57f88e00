"""What the commands say of comparisons: of two jobs, and of a job with what was recomputed of it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lockstep.comparing import WITHOUT_INFLUENCE, Comparison, Difference
from lockstep.job import Job
from lockstep.progress import counted
from lockstep.verifying import Verification


def verification_lines(found: Verification) -> Iterator[str]:
    """Yield the lines that tell what a verification has found."""
    comparison = found.comparison
    steps = f"steps {found.from_step}..{found.to_step}"
    if comparison.parting is not None:
        yield f"different: {comparison.parting} (recorded and recomputed; {steps} were recomputed)"
    elif not comparison.equal:
        yield f"not verified: nothing is recorded of {steps}"
    else:
        yield f"equal: {steps}, {counted(comparison.num_digests, 'digest')}"
    missing = found.to_step - found.from_step - comparison.num_steps
    if comparison.equal and missing > 0:
        yield f"not recorded, and so not compared: {counted(missing, 'step')}"
    yield from _of_data(comparison, "at the time and now")
    yield from _of_numerics(comparison, "at the time and now")


def verification_fields(found: Verification) -> dict[str, Any]:
    """Return what `--format json` says of a verification."""
    fields = comparison_fields(found.comparison)
    del fields["spec"]  # differs by what makes it a verification
    return {"job": found.job_id, "from_step": found.from_step, "to_step": found.to_step} | fields


def comparison_lines(a: Job, b: Job, found: Comparison) -> Iterator[str]:
    """Yield the lines that tell how two jobs compare."""
    if found.parting is not None:
        yield f"different: {found.parting}"
    elif not found.equal:
        yield "no common steps: nothing can be compared"
    else:
        yield f"no difference in {counted(found.num_steps, 'common step')}, {counted(found.num_digests, 'digest')}"
    if found.equal and a.step != b.step:
        longer, shorter = sorted((a, b), key=lambda job: -job.step)
        yield f"job {longer.id} has done {longer.step} steps, job {shorter.id} {shorter.step}"
    for difference in found.spec:
        harmless = difference.path.partition(".")[0] in WITHOUT_INFLUENCE
        yield f"spec: {_said(difference)}{' (has no influence on the result)' if harmless else ''}"
    yield from _of_data(found, "of the first and of the second job")
    yield from _of_numerics(found, "of the first and of the second job")


def comparison_fields(found: Comparison) -> dict[str, Any]:
    """Return what `--format json` says of a comparison."""
    fields = asdict(found)
    lists = {name: list(fields.pop(name)) for name in ("spec", "data", "numerics")}
    return {"equal": found.equal} | fields | lists


def _of_data(found: Comparison, whose: str) -> Iterator[str]:
    for name, a, b in ((item.path, item.a, item.b) for item in found.data):
        yield f"{name} data: fingerprint {a[:16]}… and {b[:16]}… ({whose})"


def _of_numerics(found: Comparison, whose: str) -> Iterator[str]:
    for difference in found.numerics:
        yield f"numerics: {_said(difference)} ({whose})"


def _said(difference: Difference) -> str:
    a, b = ("not given" if value is None else _written(value) for value in (difference.a, difference.b))
    return f"{difference.path}: {a} and {b}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).lower() if isinstance(value, bool) else repr(value)
