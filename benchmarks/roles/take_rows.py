"""The middle network's gradient from rows as they lie, and from permuted rows. Run as a process; prints both."""

import json
import sys
import time

import numpy as np

from benchmarks.networks import CASES
from benchmarks.roles.worker import noise
from lockstep_proto.codec import Sums
from lockstep_proto.spec import read_spec
from lockstep_worker.backprop import Backprop
from lockstep_worker.batches import Batch
from lockstep_worker.network import Network
from lockstep_worker.shard import Shard

NUM_ROWS = 30_000  # of a shard: 94 MB, which no cache holds
WARMUP_STEPS = 3


def main() -> None:
    """Measure once, in turns."""
    case, num_steps = CASES["M"], WARMUP_STEPS + int(sys.argv[1])
    spec = read_spec(case.spec(workers=1, shards=2, data="none.npz"))
    network = Network.from_spec(spec)
    backprop = Backprop.from_spec(spec, network)
    flat = np.random.default_rng(0).normal(0, 0.02, network.layout.num_parameters).astype(np.float32)
    views, out = network.layout.views(flat), np.empty_like(flat)
    shard, size = noise(NUM_ROWS, case.sizes[0], case.sizes[-1])(0), case.batch // 2
    order = np.random.default_rng(0).permutation(NUM_ROWS)

    def seconds(batch: Batch) -> float:
        begun = time.perf_counter()
        backprop.gradient(views, batch, out, _ignore)
        return time.perf_counter() - begun

    ordered, permuted = [], []
    for step in range(num_steps):
        lo = step * size % (NUM_ROWS - size)
        lying = Shard(shard.x[lo : lo + size], shard.y[lo : lo + size])
        ordered.append(seconds(Batch(lying, None)))
        permuted.append(seconds(Batch(shard, order[lo : lo + size])))
    medians = {
        name: 1000 * float(np.median(s[WARMUP_STEPS:])) for name, s in (("ordered", ordered), ("permuted", permuted))
    }
    print(json.dumps({f"{name}_ms": ms for name, ms in medians.items()}), flush=True)


def _ignore(layer: int, sums: Sums) -> None:
    pass


if __name__ == "__main__":
    main()
