"""Data and jobs that the tests of the client share, and what they know of a command that has ended."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

RNG = np.random.default_rng(5)
X = RNG.normal(size=(48, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 48)
SPEC: dict[str, Any] = {
    "name": "small",
    "network": {"inputs": 4, "layers": [{"units": 5, "activation": "tanh"}, {"units": 3, "activation": "softmax"}]},
    "loss": "cross_entropy",
    "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.5}},
    "batch_size": 16,
    "epochs": 2,
    "shards": 4,
    "seed": 7,
}
ENDLESS = {key: value for key, value in SPEC.items() if key != "epochs"} | {"name": "endless", "steps": 10**9}
# The cluster has one worker, so that this one stays in the queue.
WAITING = SPEC | {"name": "waiting", "workers": {"min": 2, "max": 2}}


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]
