"""The networks that are measured, from one that is all overhead to one that is all arithmetic or all transfer."""

from dataclasses import dataclass
from typing import Any

from benchmarks.table import Limit


@dataclass(frozen=True)
class Case:
    """A network, its batch, and how much of it is measured. Warm-up is left out of every number."""

    name: str
    sizes: tuple[int, ...]  # n_1 to n_L; relu inside, softmax at the end
    batch: int
    limit: Limit  # for a step on two cores, against the floor
    steps_per_epoch: int
    warmup_epochs: int
    epochs: int
    floor_steps: int

    @property
    def num_rows(self) -> int:
        """Rows of training data."""
        return self.batch * self.steps_per_epoch

    @property
    def num_parameters(self) -> int:
        """Elements of the flat vector."""
        return sum(n_in * n_out + n_out for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False))

    def spec(self, *, workers: int, shards: int, data: str) -> dict[str, Any]:
        """Return a job that trains it, with momentum."""
        *hidden, outputs = self.sizes[1:]
        layers = [{"units": units, "activation": "relu"} for units in hidden]
        return {
            "name": f"benchmark-{self.name}",
            "network": {"inputs": self.sizes[0], "layers": [*layers, {"units": outputs, "activation": "softmax"}]},
            "loss": "cross_entropy",
            "optimizer": {"sgd": {"learning_rate": 0.001, "momentum": 0.9}},
            "batch_size": self.batch,
            "epochs": self.warmup_epochs + self.epochs,
            "shards": shards,
            "workers": {"min": workers, "max": workers},
            "data": {"path": data},
        }

    def __str__(self) -> str:
        return f"{self.name}: {'-'.join(map(str, self.sizes))}, batch {self.batch}"


def _times(ratio: float) -> Limit:
    return Limit(ratio, of_ratio=True)


LARGE = (1024, 4096, 4096, 1000)
# Each job takes a few seconds: enough steps that their mean is steady, few enough for many rounds.
_ALL = (
    Case("S", (64, 128, 10), 256, Limit(0.7), steps_per_epoch=64, warmup_epochs=5, epochs=30, floor_steps=8000),
    Case("M", (784, 512, 256, 10), 1024, _times(1.4), steps_per_epoch=32, warmup_epochs=2, epochs=6, floor_steps=100),
    Case("L", LARGE, 1024, _times(1.2), steps_per_epoch=12, warmup_epochs=1, epochs=1, floor_steps=8),
    Case("C", LARGE, 128, _times(1.75), steps_per_epoch=32, warmup_epochs=1, epochs=1, floor_steps=24),
)
CASES = {case.name: case for case in _ALL}
