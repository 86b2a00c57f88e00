"""A round: the work that all workers share at one version."""

from dataclasses import dataclass, field

from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.layout import Chunking
from lockstep_proto.v1 import training_pb2
from lockstep_server.assignment import Range
from lockstep_server.reduction import Reduction


@dataclass
class Round:
    """A step or an evaluation, until its root is there."""

    kind: training_pb2.WorkKind.ValueType
    reduction: Reduction
    started_s: float
    sums: Sums | None = None
    compute_s: dict[str, float] = field(default_factory=dict)
    orphans: list[Range] = field(default_factory=list)  # shards that no worker has

    @property
    def evaluates(self) -> bool:
        """Whether it is an evaluation."""
        return self.kind == training_pb2.WORK_KIND_EVALUATE

    def computed(self, worker_id: str, compute_s: float) -> None:
        """Take note of how long a worker has computed so far."""
        self.compute_s[worker_id] = max(compute_s, self.compute_s.get(worker_id, 0.0))

    def seconds(self, step_s: float) -> tuple[float, float, float]:
        """Split the seconds of the round into what workers computed (mean), what they waited, and the transfer."""
        compute_s = list(self.compute_s.values()) or [0.0]
        mean_s = sum(compute_s) / len(compute_s)
        return mean_s, max(compute_s) - mean_s, max(step_s - max(compute_s), 0.0)


def check_size(chunk: NodeChunk, size: int, chunking: Chunking, *, evaluates: bool) -> None:
    """Raise ValueError for a chunk whose values are not as many as they must be."""
    lo, hi = (0, 0) if evaluates else chunking.range(chunk.chunk_index)
    if size != hi - lo or not 0 <= chunk.chunk_index < chunking.num_chunks:
        raise ValueError(f"chunk {chunk.chunk_index} has {size} elements, not {hi - lo}")
