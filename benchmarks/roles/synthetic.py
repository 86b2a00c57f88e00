"""Workers that compute nothing: each answers at once, with the same values for every step. Run as a process.

They speak the worker's part of the exchange through the product's codec and channel arguments, in one thread, so that
as little as can be is theirs of what is measured.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from benchmarks.processes import cpu_s, main_thread_cpu_s, rss_bytes
from lockstep_proto import channels, codec, numerics, tree
from lockstep_proto.codec import NodeChunk, ParameterChunk, Sums
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.v1 import training_pb2

REDIAL_S = 0.05
ONE_ROW = Sums(1.0, 1.0, 0.0)


class SyntheticWorker:
    """One worker of one job."""

    def __init__(self, job_id: str, worker_id: str, at_step: Callable[[int], None]) -> None:
        hello = training_pb2.WorkerHello(
            job_id=job_id, worker_id=worker_id, num_cpus=1, numerics=numerics.fingerprint()
        )
        self._hello = training_pb2.WorkerMessage(hello=hello).SerializeToString()
        self._num_shards = 0
        self._chunks: list[memoryview] = []
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._at_step = at_step

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Work until the server says goodbye; dial until the job runs."""
        exchange: Any = channel.stream_stream(
            "/lockstep.v1.TrainingService/Exchange",
            request_serializer=None,
            response_deserializer=codec.decode_server_message,
        )
        while True:
            call = exchange()
            writing = asyncio.create_task(self._write(call))
            try:
                async for message in call:
                    self._received(message)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
            finally:
                writing.cancel()
            await asyncio.sleep(REDIAL_S)

    async def _write(self, call: Any) -> None:
        await call.write(self._hello)
        while True:
            await call.write(await self._outgoing.get())

    def _received(self, message: ParameterChunk | training_pb2.ServerMessage) -> None:
        if isinstance(message, ParameterChunk):
            return
        match message.WhichOneof("kind"):
            case "welcome":
                self._prepare(message.welcome)
            case "work":
                self._work(message.work)

    def _prepare(self, welcome: training_pb2.Welcome) -> None:
        layout = Layout.from_spec(welcome.spec)
        chunking = Chunking(layout.num_parameters, welcome.chunk_elements)
        self._num_shards = welcome.spec.shards
        values = np.full(layout.num_parameters, 0.001, layout.dtype)
        ranges = [chunking.range(i) for i in range(chunking.num_chunks)]
        self._chunks = [values[lo:hi].data for lo, hi in ranges]

    def _work(self, work: training_pb2.Work) -> None:
        if work.kind != training_pb2.WORK_KIND_STEP:
            return
        self._at_step(work.version)
        for part in work.ranges:
            for node in tree.top_nodes(part.lo, part.hi, self._num_shards):
                for index in reversed(range(len(self._chunks))):
                    chunk = NodeChunk(work.attempt, work.version, node, index, ONE_ROW, 0.0, self._chunks[index])
                    self._outgoing.put_nowait(codec.encode_node_chunk(chunk))


class Probe:
    """What the server and this process have used between two steps.

    A worker that the server takes for slow may have no part in these very steps: the first ones at or after them count.
    """

    def __init__(self, server_pid: int, first: int, last: int) -> None:
        self._pid = server_pid
        self._first, self._last = first, last
        self._begun: dict[str, float] | None = None
        self.found: dict[str, float] | None = None

    def at_step(self, step: int) -> None:
        """A worker is to compute a step."""
        if self._begun is None and step >= self._first:
            self._begun = self._now(step)
        elif self._begun is not None and self.found is None and step >= self._last:
            self.found = {name: now - self._begun[name] for name, now in self._now(step).items()}
            self.found["server_rss_bytes"] = rss_bytes(self._pid)

    def _now(self, step: int) -> dict[str, float]:
        return {
            "steps": step,
            "seconds": time.perf_counter(),
            "server_cpu_s": cpu_s(self._pid),
            "server_loop_s": main_thread_cpu_s(self._pid),
            "cpu_s": time.process_time(),
        }


async def _run(options: argparse.Namespace) -> Probe:
    probe = Probe(options.server_pid, options.warmup, options.warmup + options.steps)
    names = [f"w{i}" for i in range(options.first, options.first + options.workers)]
    workers = [SyntheticWorker(options.job, name, probe.at_step) for name in names]
    arguments = [*channels.channel_options(), ("grpc.use_local_subchannel_pool", 1)]  # each has a connection of its own
    opened = [grpc.aio.insecure_channel(options.server, options=arguments) for _ in workers]
    await asyncio.gather(*(worker.run(channel) for worker, channel in zip(workers, opened, strict=True)))
    for channel in opened:
        await channel.close()
    return probe


def main() -> None:
    """Be some of a job's workers until it ends; print what was measured, or null."""
    parser = argparse.ArgumentParser()
    for name in ("server", "job"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("server-pid", "first", "workers", "warmup", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    print(json.dumps(asyncio.run(_run(parser.parse_args())).found))


if __name__ == "__main__":
    main()
