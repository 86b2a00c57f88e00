"""What people read of the troubles of a training."""

from collections.abc import Iterable, Sequence

from lockstep_proto.rows import shard_range
from lockstep_proto.tree import Node
from lockstep_server.crew import WorkerView
from lockstep_server.handout import Gift
from lockstep_server.progress import Plan
from lockstep_server.rounds import Round
from lockstep_server.update import ParameterUpdate
from lockstep_server.witnesses import Dispute


def not_finite(version: int, shard: int, layer: int, plan: Plan) -> str:
    """Say which shard and layer of a step are not finite; layer 0 stands for the loss."""
    what = f"the gradient of layer {layer}" if layer else "the loss"
    lo, hi = shard_range(plan.num_rows, plan.num_shards, shard)
    rows = f"shard {shard} (rows {lo} to {hi - 1} of the training data)"
    return f"step {version}: {what} is not finite on {rows}; look at these rows, or try a smaller learning rate"


def place_of(node: Node, chunk_index: int, current: Round, update: ParameterUpdate) -> str:
    """Name a chunk of a node's value."""
    shards = f"node [{node[0]}, {node[1]})"
    if current.evaluates:
        return f"{shards} of the evaluation at version {current.version}"
    layer = update.layout.layer_of(update.chunking.range(chunk_index)[0])
    return f"{shards} of step {current.version} (layer {layer})"


def lost(worker_id: str, reason: str) -> str:
    """Tell of a worker that is lost or given up."""
    return f"worker {worker_id} is lost: {reason}"


def copies_differ(where: str, dispute: Dispute) -> str:
    """Tell of a dispute."""
    return f"{where}: the copies of {voters(dispute)} differ, which they never should; a further one decides"


def voters(dispute: Dispute) -> str:
    """Name the workers that have sent a disputed node."""
    return listed(sorted({vote.worker_id for vote in dispute.votes}))


def share_changed(worker: WorkerView) -> str:
    """Tell of a worker whose share of the shards changes with its speed."""
    if worker.pace.slow:
        return f"worker {worker.worker_id} has been late several steps running; it gets shards by its speed now"
    return f"worker {worker.worker_id} is as fast as usual again; it gets its share of the shards"


def given_twice(late: Sequence[WorkerView], gifts: Iterable[Gift], current: Round) -> str:
    """Tell of shards that are computed twice since their workers are late."""
    what = f"{'the evaluation at version' if current.evaluates else 'step'} {current.version}"
    names = listed([worker.worker_id for worker in late])
    others = listed([gift.worker.worker_id for gift in gifts])
    return f"worker {names} is late with {what}: its shards are also given to {others}; the first copy counts"


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
