"""Compares what is recorded of two jobs, bit for bit: where they part, and what they were given that differs."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.spec import to_dict
from lockstep_proto.v1 import job_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint

if TYPE_CHECKING:
    from lockstep.job import Job

Array = npt.NDArray[Any]
Key = tuple[int, str]  # version, and where its digest is recorded
QUANTITIES = ("loss", "gradient_norm")  # of a step, in the order in which they are computed
WITHOUT_INFLUENCE = ("name", "workers", "checkpoints", "audit")  # fields of a spec that the result does not depend on


@dataclass(frozen=True)
class Difference:
    """A value that two jobs do not share: `path` says which, `a` and `b` are theirs; None where one has none."""

    path: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Parting:
    """The first step at which two jobs differ.

    `quantity` is "loss" or "gradient_norm" of this step, or the "digest" of the parameters that it starts from: then
    the step before it was the one that differed.
    """

    step: int
    quantity: str
    a: Any
    b: Any

    def __str__(self) -> str:
        if self.quantity == "digest":
            return f"version {self.step}: digest {self.a[:16]}… and {self.b[:16]}…"
        return f"step {self.step}: {self.quantity.replace('_', ' ')} {self.a!r} and {self.b!r}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two jobs, over the steps and recorded digests that both have.

    `parting` is where they part; None if they do not. `lo` and `hi` bound the common steps, hi excluded. `spec`,
    `data` and `numerics` tell what differs in what they were given and computed with, whether or not they part.
    """

    parting: Parting | None
    lo: int
    hi: int
    num_steps: int
    num_digests: int
    spec: tuple[Difference, ...]
    data: tuple[Difference, ...]
    numerics: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether they have something in common to be compared, and do not part in it."""
        return self.parting is None and self.num_steps + self.num_digests > 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is compared of a job.

    `steps` has the columns of History.steps; `digests` are by version and by where they are recorded, in the "ledger"
    or with the "model"; `data` are the fingerprints of the data. `numerics` are those of its workers and of the server,
    as the job has them (version None) and by version.
    """

    spec: job_pb2.JobSpec
    steps: Mapping[str, Sequence[Any]]
    digests: Mapping[Key, str]
    data: Mapping[str, str]
    numerics: Mapping[tuple[str, int | None], NumericsFingerprint]

    @classmethod
    def of(cls, job: "Job") -> "Record":
        """Ask the server for all that it has recorded of a job; the job itself is taken as it is."""
        ledger = job.ledger()
        digests = {(entry.version, "ledger"): entry.digest for entry in ledger}
        if job.digest:
            digests[job.step, "model"] = job.digest
        numerics: dict[tuple[str, int | None], NumericsFingerprint] = {
            ("numerics", None): job.numerics,
            ("server_numerics", None): job.server_numerics,
        }
        for entry in ledger:
            numerics["numerics", entry.version] = entry.numerics
            numerics["server_numerics", entry.version] = entry.server_numerics
        return cls(
            spec=job.spec,
            steps=job.history.steps,
            digests=digests,
            data={"training": job.data_fingerprint, "validation": job.validation_fingerprint},
            numerics=numerics,
        )


def compare(a: Record, b: Record) -> Comparison:
    """Compare what two records have in common."""
    steps, columns_a, columns_b = _common_steps(a.steps, b.steps)
    recorded = sorted(a.digests.keys() & b.digests.keys())
    partings = [
        *_first_digest(recorded, a.digests, b.digests),
        *_first_steps(steps, columns_a, columns_b),
    ]
    order = ("digest", *QUANTITIES)  # of what belongs to one version
    return Comparison(
        parting=min(partings, key=lambda found: (found.step, order.index(found.quantity)), default=None),
        lo=int(steps[0]) if len(steps) else 0,
        hi=int(steps[-1]) + 1 if len(steps) else 0,
        num_steps=len(steps),
        num_digests=len({version for version, _ in recorded}),
        spec=tuple(spec_differences(a.spec, b.spec)),
        data=tuple(_known_differences(a.data, b.data)),
        numerics=tuple(_numerics_differences(a.numerics, b.numerics)),
    )


def spec_differences(a: job_pb2.JobSpec, b: job_pb2.JobSpec) -> Iterator[Difference]:
    """Yield the fields in which two specs differ, in the order of the schema."""
    fields_a, fields_b = dict(_flat(to_dict(a), "")), dict(_flat(to_dict(b), ""))
    order = {name: place for place, name in enumerate(job_pb2.JobSpec.DESCRIPTOR.fields_by_name)}
    paths = sorted(fields_a | fields_b, key=lambda path: order[path.partition(".")[0].partition("[")[0]])
    for path in paths:
        if fields_a.get(path) != fields_b.get(path):
            yield Difference(path, fields_a.get(path), fields_b.get(path))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of all that has no fields of its own; of what is empty, that it is there."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _flat(item, f"{path}[{i}]")
    else:
        yield path, value


def _common_steps(
    a: Mapping[str, Sequence[Any]], b: Mapping[str, Sequence[Any]]
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Return the steps that both have, ascending, and both their columns at these."""
    steps, at_a, at_b = np.intersect1d(_whole(a["step"]), _whole(b["step"]), assume_unique=True, return_indices=True)
    columns = [{name: np.asarray(of[name], np.float64)[at] for name in QUANTITIES} for of, at in ((a, at_a), (b, at_b))]
    return steps, columns[0], columns[1]


def _whole(numbers: Sequence[Any]) -> Array:
    return np.asarray(numbers, np.int64)


def _first_steps(steps: Array, a: Mapping[str, Array], b: Mapping[str, Array]) -> Iterator[Parting]:
    """Yield for each quantity the first step at which its bits differ."""
    for name in QUANTITIES:
        differing = np.flatnonzero(a[name].view(np.uint64) != b[name].view(np.uint64))
        if len(differing):
            first = differing[0]
            yield Parting(int(steps[first]), name, float(a[name][first]), float(b[name][first]))


def _first_digest(recorded: Sequence[Key], a: Mapping[Key, str], b: Mapping[Key, str]) -> Iterator[Parting]:
    differing = (key for key in recorded if a[key] != b[key])
    for key in itertools.islice(differing, 1):
        yield Parting(key[0], "digest", a[key], b[key])


def _known_differences(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Difference]:
    """Yield the fingerprints that differ; data that were never loaded have none."""
    for name, value in a.items():
        if value and b[name] and value != b[name]:
            yield Difference(name, value, b[name])


def _numerics_differences(
    a: Mapping[tuple[str, int | None], NumericsFingerprint], b: Mapping[tuple[str, int | None], NumericsFingerprint]
) -> Iterator[Difference]:
    """Yield the fields that differ, each once; a job that never ran has no numerics."""
    told = set()
    for key in [key for key in a if key in b and a[key].ByteSize() and b[key].ByteSize()]:
        for field in NumericsFingerprint.DESCRIPTOR.fields:
            path = f"{key[0]}.{field.name}"
            mine, other = getattr(a[key], field.name), getattr(b[key], field.name)
            if mine != other and path not in told:
                told.add(path)
                yield Difference(path, mine, other)
