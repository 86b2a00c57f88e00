"""The networks that are measured, from one that is all overhead to one that is all arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A network, its batch, and how much of it is measured. Warm-up is left out of every number."""

    name: str
    sizes: tuple[int, ...]  # n_1 to n_L; relu inside, softmax at the end
    batch: int
    limit_ms: float  # what a step may take on two cores
    steps_per_epoch: int
    warmup_epochs: int
    epochs: int
    floor_steps: int

    @property
    def num_rows(self) -> int:
        """Rows of training data."""
        return self.batch * self.steps_per_epoch

    def __str__(self) -> str:
        return f"{self.name}: {'-'.join(map(str, self.sizes))}, batch {self.batch}"


# Each job takes a few seconds: enough steps that their mean is steady, few enough for many rounds.
CASES = {
    case.name: case
    for case in (
        Case("S", (64, 128, 10), 256, 1.5, steps_per_epoch=64, warmup_epochs=5, epochs=30, floor_steps=8000),
        Case("M", (784, 512, 256, 10), 1024, 25.0, steps_per_epoch=16, warmup_epochs=2, epochs=6, floor_steps=100),
        Case("L", (1024, 4096, 4096, 1000), 1024, 1200.0, steps_per_epoch=8, warmup_epochs=1, epochs=1, floor_steps=8),
    )
}
