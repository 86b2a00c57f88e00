"""A round: the work that all workers share at one version."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.v1 import training_pb2
from lockstep_server.assignment import Range
from lockstep_server.reduction import Reduction
from lockstep_server.witnesses import Witnesses

Kind: TypeAlias = training_pb2.WorkKind.ValueType
STEP: Kind = training_pb2.WORK_KIND_STEP
EVALUATE: Kind = training_pb2.WORK_KIND_EVALUATE
EXAMINE: Kind = training_pb2.WORK_KIND_EXAMINE


@dataclass
class Round:
    """A step, an evaluation or an examination, until all of it is there."""

    kind: Kind
    version: int
    reduction: Reduction
    started_s: float
    sums: Sums | None = None
    compute_s: dict[str, float] = field(default_factory=dict)
    orphans: list[Range] = field(default_factory=list)  # shards that no worker has
    witnesses: Witnesses = field(default_factory=Witnesses)
    audited: bool = False  # whether some of its nodes are computed twice on purpose
    undecided_s: float | None = None  # since when nobody can tell which of two copies is right
    whole: bool = False  # whether every chunk has its root, and has been used
    problem: str = ""  # what an examination looks for
    found: tuple[int, int] | None = None  # the first shard that is not finite, and its layer; 0 for the loss

    def __post_init__(self) -> None:
        self.evaluates = self.kind == EVALUATE

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come that matters."""
        return self.whole and self.witnesses.content

    @property
    def num_chunks(self) -> int:
        """Chunks of a node's value."""
        return self.reduction.num_chunks

    def missing(self, ranges: Iterable[Range]) -> list[Range]:
        """Return the parts of some ranges that have yet to arrive."""
        return [gap for lo, hi in ranges for gap in self.reduction.missing(lo, hi)]

    def computed(self, worker_id: str, compute_s: float) -> None:
        """Take note of how long a worker has computed so far."""
        self.compute_s[worker_id] = max(compute_s, self.compute_s.get(worker_id, 0.0))

    def seconds(self, step_s: float) -> tuple[float, float, float]:
        """Split the seconds of the round into what workers computed (mean), what they waited, and the transfer."""
        compute_s = list(self.compute_s.values()) or [0.0]
        slowest_s = max(compute_s)
        mean_s = min(sum(compute_s) / len(compute_s), slowest_s)  # rounded, the mean of equal numbers can be above them
        return mean_s, slowest_s - mean_s, max(step_s - slowest_s, 0.0)


def check_size(chunk: NodeChunk, size: int, sizes: Sequence[int]) -> None:
    """Raise ValueError for a chunk whose values are not as many as they must be. `sizes` has those of all chunks."""
    if chunk.chunk_index >= len(sizes):
        raise ValueError(f"there is no chunk {chunk.chunk_index}: there are {len(sizes)}")
    if size != sizes[chunk.chunk_index]:
        raise ValueError(f"chunk {chunk.chunk_index} has {size} elements, not {sizes[chunk.chunk_index]}")
