"""A worker as a plain process, without Ray: `python -m tests.faults.worker_process SERVER JOB WORKER NUM_SHARDS`.

It says when the server has welcomed it, and last why it has ended. SIGTERM asks it to leave in order; the end of its
standard input ends it.
"""

import os
import signal
import sys
import threading

import threadpoolctl

from lockstep_worker.exchange import Worker
from tests.faults import data

JOINED = "joined"


def main(server: str, job_id: str, worker_id: str, num_shards: int) -> None:
    threadpoolctl.threadpool_limits(1)
    worker = Worker(
        worker_id,
        job_id,
        server,
        num_cpus=1,
        training=data.training(num_shards),
        validation=data.validation(num_shards),
        joined=lambda: print(JOINED, flush=True),
    )
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=worker.leave).start())  # `run` may hold its lock
    threading.Thread(target=end_with_parent, daemon=True).start()
    print(worker.run(), flush=True)


def end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
