"""The product's worker on shards of noise, without Ray. Run as a process.

With --late it is a worker as most systems have it: it computes the whole gradient first and sends it then.
"""

import argparse
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import codec
from lockstep_worker import exchange
from lockstep_worker.engine import Encode, Engine
from lockstep_worker.following import Task
from lockstep_worker.shard import Shard


class LateEngine(Engine):
    """Sends nothing until all is computed."""

    def answer(
        self,
        task: Task,
        parameters: npt.NDArray[Any],
        send: Callable[[bytes], None],
        superseded: Callable[[], bool],
        encode: Encode = codec.encode_node_chunk,
    ) -> None:
        """Compute, then send."""
        messages: list[bytes] = []
        super().answer(task, parameters, messages.append, superseded, encode)
        for message in messages:
            send(message)


def noise(num_rows: int, num_inputs: int, num_outputs: int) -> Callable[[int], Shard]:
    """Return shards by number."""

    def shard(index: int) -> Shard:
        random = np.random.default_rng(index)
        x = random.standard_normal((num_rows, num_inputs), np.float32)
        return Shard(x, random.integers(0, num_outputs, num_rows))

    return shard


def main() -> None:
    """Be one worker until the job or the input ends."""
    parser = argparse.ArgumentParser()
    for name in ("server", "job", "worker"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("cpus", "rows-per-shard", "inputs", "outputs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--late", action="store_true")
    options = parser.parse_args()
    if options.late:
        vars(exchange)["Engine"] = LateEngine
    shards = noise(options.rows_per_shard, options.inputs, options.outputs)
    worker = exchange.Worker(
        options.worker, options.job, options.server, num_cpus=options.cpus, training=shards, validation=shards
    )
    threading.Thread(target=_leave_with_parent, args=[worker], daemon=True).start()
    worker.run()


def _leave_with_parent(worker: exchange.Worker) -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock the interpreter's end waits for
        pass
    worker.leave()


if __name__ == "__main__":
    main()
