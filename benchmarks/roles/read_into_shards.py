"""A directory of Parquet is loaded into shards as the fleet does it, on a Ray of two CPUs. Run as a process.

Prints the seconds. A small file is loaded before, so that Ray's processes are there.
"""

import json
import queue
import sys
import time
from collections.abc import Callable

import ray

from benchmarks.networks import CASES
from lockstep_proto.spec import read_spec
from lockstep_worker.loading import Failure, JobData, Loading

SHARDS = 8


def load(root: str, path: str) -> JobData:
    """Load what lies at a path. Raises RuntimeError."""
    fields = CASES["M"].spec(workers=1, shards=SHARDS, data=path)
    spec = read_spec(fields | {"data": {"path": path, "target": "label"}})
    calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    found: list[JobData | Failure] = []
    Loading(spec, server="", roots=[root], post=calls.put, done=found.append).start()
    while not found:
        calls.get()()
    if isinstance(found[0], Failure):
        raise RuntimeError(found[0].message)
    return found[0]


def main() -> None:
    """Measure once."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    load(sys.argv[1], "rows/part-0.parquet")
    begun = time.perf_counter()
    data = load(sys.argv[1], "rows")
    print(json.dumps({"seconds": time.perf_counter() - begun, "num_rows": data.training.num_rows}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
