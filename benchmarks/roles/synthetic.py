"""Workers that compute nothing: each answers at once, with the same values for every step. Run as a process.

They speak the worker's part of the exchange through the product's codec and stream, all in one thread.
"""

import argparse
import json
import select
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.processes import cpu_s, main_thread_cpu_s, rss_bytes
from lockstep_proto import codec, numerics, shared, tree
from lockstep_proto.codec import NodeChunk, ParameterChunk, Sums
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.v1 import training_pb2
from lockstep_worker.conversation import Conversation
from lockstep_worker.stream import CallEndedError

REDIAL_S = 0.05
ONE_ROW = Sums(1.0, 1.0, 0.0)


class Selectable(Conversation):
    """A conversation that is dialled at once, and can be waited for together with others."""

    def __init__(self, server: str) -> None:
        super().__init__(server)
        self._dial()

    def fileno(self) -> int:
        assert self._socket is not None
        return self._socket.fileno()


class SyntheticWorker:
    """One worker of one job."""

    def __init__(self, job_id: str, worker_id: str, at_step: Callable[[int], None]) -> None:
        hello = training_pb2.WorkerHello(
            job_id=job_id,
            worker_id=worker_id,
            num_cpus=1,
            numerics=numerics.fingerprint(),
            machine=shared.machine(),
        )
        self._hello = training_pb2.WorkerMessage(hello=hello).SerializeToString()
        self._num_shards = 0
        self._to_send = deque[NodeChunk]()
        self._chunks: list[memoryview] = []
        self._chunk_bytes = 0
        self._parameters = memoryview(b"")
        self._rooms: dict[int, codec.Data] = {}  # in shared memory, by the version that lies there
        self._at_step = at_step

    def dial(self, server: str) -> int:
        """Begin to work. Return the number of the stream's file."""
        self.stream = Selectable(server)
        self.stream.send(self._hello)
        return self.stream.fileno()

    def read(self, *, wait: bool) -> None:
        """Take in what has come. Raises CallEndedError."""
        for message in self.stream.hear(wait=wait):
            self._received(message)

    def send(self) -> bool:
        """Send a chunk, if there is one to send. Return whether there are more."""
        if self._to_send:
            self.stream.send(self.stream.encode(self._to_send.popleft()))
        return bool(self._to_send)

    def _received(self, message: ParameterChunk | training_pb2.ServerMessage) -> None:
        if isinstance(message, ParameterChunk) and message.place is not None:  # is held, as by a worker that computes
            self._rooms[message.version] = message.data
            return
        if isinstance(message, ParameterChunk):  # is copied, as by a worker that computes
            begin = message.chunk_index * self._chunk_bytes
            self._parameters[begin : begin + len(message.data)] = message.data
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
        self._chunk_bytes = welcome.chunk_elements * layout.dtype.itemsize
        self._parameters = memoryview(bytearray(values.nbytes))

    def _work(self, work: training_pb2.Work) -> None:
        self._rooms = {version: room for version, room in self._rooms.items() if version >= work.version}
        if work.kind != training_pb2.WORK_KIND_STEP:
            return
        self._at_step(work.version)
        for part in work.ranges:
            for node in tree.top_nodes(part.lo, part.hi, self._num_shards):
                for index, values in enumerate(self._chunks):
                    chunk = NodeChunk(work.attempt, work.version, node, index, ONE_ROW, 0.0, values)
                    self._to_send.append(chunk)


def drive(workers: Sequence[SyntheticWorker], server: str) -> None:
    """Have workers work until the server says goodbye to each; dial until the job runs."""
    away, working = list(workers), dict[int, SyntheticWorker]()
    sending = 0  # workers with more to send
    with select.epoll() as ready:
        while away or working:
            while away:
                worker = away.pop()
                try:
                    number = worker.dial(server)
                except CallEndedError:  # the server has gone
                    continue
                working[number] = worker
                ready.register(worker.stream, select.EPOLLIN)
            alone = len(working) == 1  # then it waits as workers do, without the cost of asking who is ready
            for number in list(working) if alone else [number for number, _ in ready.poll(0 if sending else None)]:
                worker = working[number]
                try:
                    worker.read(wait=alone and not sending)
                except CallEndedError as error:
                    worker.stream.close()  # which ends the waiting for it, too
                    del working[number]
                    if "does not run now" in str(error):
                        away.append(worker)
            sending = sum(worker.send() for worker in working.values())  # in turns, as workers side by side do
            if away:
                time.sleep(REDIAL_S)


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


def _run(options: argparse.Namespace) -> Probe:
    probe = Probe(options.server_pid, options.warmup, options.warmup + options.steps)
    names = [f"w{i}" for i in range(options.first, options.first + options.workers)]
    workers = [SyntheticWorker(options.job, name, probe.at_step) for name in names]
    drive(workers, options.server)
    return probe


def main() -> None:
    """Be some of a job's workers until it ends; print what was measured, or null."""
    parser = argparse.ArgumentParser()
    for name in ("server", "job"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("server-pid", "first", "workers", "warmup", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    print(json.dumps(_run(parser.parse_args()).found))


if __name__ == "__main__":
    main()
