"""The jobs that the simulator runs, and what must come of them: bits of the plain loop, which shares only numpy."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockstep_proto.rows import shard_range
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import job_pb2
from lockstep_worker.shard import Shard
from tests import plain_loop
from tests.plain_loop import Settings

_RNG = np.random.default_rng(5)
X = _RNG.normal(size=(97, 6)).astype(np.float32)  # ragged for every number of shards below
Y = _RNG.integers(0, 3, 97)
VALIDATION_X = _RNG.normal(size=(20, 6)).astype(np.float32)
VALIDATION_Y = _RNG.integers(0, 3, 20)
SIZES = (6, 11, 3)


@dataclass(frozen=True, eq=False)
class Case:
    """A job: what it computes, and what has no influence on that."""

    name: str
    settings: Settings
    validation: bool = False


@dataclass(frozen=True)
class Expected:
    """What a job must come to: by version, and by step or epoch."""

    digests: list[str]
    losses: list[float]
    norms: list[float]
    epoch_losses: list[float]
    validation_losses: list[float]
    epoch_ends: list[int]  # versions

    @property
    def num_steps(self) -> int:
        return len(self.losses)

    @property
    def best_digest(self) -> str:
        return self.digests[self.epoch_ends[int(np.argmin(self.validation_losses))]]


def _case(name: str, *, validation: bool = False, **settings: object) -> Case:
    common = {"sizes": SIZES, "batch": 21, "epochs": 4, "shards": 7}
    return Case(name, Settings(**(common | settings)), validation)


CASES = [
    _case("momentum", momentum=0.9, validation=True),
    _case("adam-bfloat16", optimizer="adam", learning_rate=0.01, bfloat16=True, shards=3, validation=True),
    _case("one-shard", shards=1),
    _case("clip-l2", clip_norm=0.2, l2=0.01, shards=4, batch=20, epochs=4),
    _case("dropout", dropout=0.4, hidden="tanh", shards=8, batch=24, epochs=5),
    _case("full-batch", batch=None, epochs=15, shards=5, validation=True),
]


def spec_of(case: Case, **further: object) -> job_pb2.JobSpec:
    """The spec of a case; `further` are fields without influence on the result."""
    s = case.settings
    hidden = [{"units": n, "activation": s.hidden, "dropout": s.dropout} for n in s.sizes[1:-1]]
    sgd = {"sgd": {"learning_rate": s.learning_rate, "momentum": s.momentum}}
    fields = {
        "name": case.name,
        "network": {"inputs": s.sizes[0], "layers": [*hidden, {"units": s.sizes[-1], "activation": "softmax"}]},
        "loss": s.loss,
        "optimizer": {"adam": {"learning_rate": s.learning_rate}} if s.optimizer == "adam" else sgd,
        "batch_size": "full" if s.batch is None else s.batch,
        "epochs": s.epochs,
        "shards": s.shards,
        "seed": s.seed,
        "wire_dtype": "bfloat16" if s.bfloat16 else None,
        "penalty": {"l2": s.l2},
        "clip_norm": s.clip_norm,
        "data": {"path": "rows.csv", "target": "y"},
        **({"validation": {"path": "more.csv", "target": "y"}} if case.validation else {}),
        **further,
    }
    return read_spec(fields)


@functools.cache
def expected(case: Case) -> Expected:
    """What the plain loop makes of a case."""
    s = case.settings
    result = plain_loop.train(s, X, Y, validation=(VALIDATION_X, VALIDATION_Y) if case.validation else None)
    per_epoch = len(result.losses) // s.epochs
    losses, weights = (np.reshape(values, (s.epochs, per_epoch)) for values in (result.losses, result.weights))
    return Expected(
        digests=[digest(case, flat) for flat in result.versions],
        losses=result.losses,
        norms=result.norms,
        epoch_losses=[float(loss) for loss in np.average(losses, axis=1, weights=weights)],
        validation_losses=result.validation,
        epoch_ends=[(epoch + 1) * per_epoch for epoch in range(s.epochs)],
    )


def digest(case: Case, flat: "np.ndarray[Any, Any]") -> str:
    """The digest of parameters."""
    return plain_loop.Result(flat=flat).digest(case.settings)


def shards(num_shards: int, *, training: bool) -> Callable[[int], Shard]:
    """The shards of the data by number, as the fleet loads them."""
    x, y = (X, Y) if training else (VALIDATION_X, VALIDATION_Y)

    def shard(i: int) -> Shard:
        lo, hi = shard_range(len(x), num_shards, i)
        return Shard(x[lo:hi], y[lo:hi])

    return shard
