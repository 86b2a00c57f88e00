"""One worker: the product's session and engine, on the simulated network, with computations that take their time."""

import asyncio
import random
import socket
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lockstep_proto import codec
from lockstep_proto.numerics import fingerprint
from lockstep_proto.v1 import training_pb2
from lockstep_worker import shares
from lockstep_worker.engine import Engine
from lockstep_worker.session import Compute, Dial, Effect, End, Job, Joined, Prepare, Send, Session
from tests.simulator import jobs
from tests.simulator.loop import Loop, Process
from tests.simulator.network import End as StreamEnd
from tests.simulator.network import Failure, Network, Stream
from tests.simulator.rpc import answers
from tests.simulator.server import ADDRESS

shares.SMALL_MULTIPLICATIONS = 0  # small networks, too, are computed by all threads, in any order


class Worker:
    """A process that computes for one job; that of a `spare` has done so for others, or has yet to begin.

    `joined` is called when the server has welcomed it, `ended` with its error, if it ends by one, and whether its
    process can be another worker.
    """

    def __init__(
        self,
        loop: Loop,
        network: Network,
        job_id: str,
        worker_id: str,
        *,
        num_cpus: int,
        joined: Callable[[], None],
        ended: Callable[[str | None, bool], None],
        spare: "Worker | None" = None,
    ) -> None:
        self.process = Process(loop, worker_id) if spare is None else spare.process
        self.slowness = 1.0  # factor on what its computations take
        self.num_copies = 0  # so many of the next chunks are sent twice
        self.wrong_bits: list[int] = []  # each is turned over in one further chunk
        self.fails = False  # the next computation does
        self._loop = loop
        self._network = network
        self._random = random.Random(f"{network.seed}/{worker_id}")
        self._step_s = self._random.uniform(0.1, 0.5)  # for all shards of a job
        self._num_cpus = num_cpus
        self._joined = joined
        self._ended = ended
        self._session = Session(
            training_pb2.WorkerHello(
                job_id=job_id, worker_id=worker_id, host=socket.gethostname(), num_cpus=num_cpus, numerics=fingerprint()
            )
        )
        self._engine: tuple[Job, Engine] | None = None
        self.stream: Stream | None = None
        self.over = False  # it has ended by itself
        self._ending = False  # or is about to
        self._num_computing = 0

    def begin(self) -> None:
        """Dial, unless it has been told to leave already."""
        self._dial()
        self.process.start(self._tick())

    def back_to_speed(self) -> None:
        """Be as fast as before."""
        self.slowness = 1.0

    def leave(self) -> None:
        """Leave in order."""
        self._carry(self._session.leave())

    def _dial(self) -> None:
        if not self._ending:
            self.process.start(self._exchange())

    async def _exchange(self) -> None:
        stream = self.stream = self._network.call(self.process, ADDRESS, "Exchange")
        self._carry(self._session.opened(self._loop.time()))
        reason = "the server closed the stream"
        try:
            async for message in answers(stream):
                if self.stream is not stream:
                    return
                decoded = codec.decode_server_message(message)
                self._carry(self._session.received(decoded, self._loop.time()))
        except Failure as failure:
            reason = failure.details()
        if self.stream is stream:
            self._carry(self._session.lost(reason, self._loop.time()))

    async def _tick(self) -> None:
        while not self._ending:
            await asyncio.sleep(self._session.period_s)
            self._carry(self._session.tick(self._loop.time()))

    def _carry(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message):
                    assert self.stream is not None
                    self.stream.up.send(message)
                case Joined():
                    self._joined()
                case Compute():
                    assert self.stream is not None
                    self.process.start(self._compute(effect, self.stream))
                case Prepare():
                    self.process.start(self._prepare(effect))
                case Dial(wait_s):
                    self._hang_up()
                    self.process.later(wait_s, self._dial)
                case End(reason, failed, refused):
                    self._ending = True
                    if self.stream is not None:
                        self.stream.up.end(StreamEnd())
                    self.stream = None
                    self.process.later(0.01, self._end, reason if failed else None, not (failed or refused))

    def _hang_up(self) -> None:
        if self.stream is not None:
            self.stream.cancel()
            self.stream = None

    def _end(self, error: str | None, reusable: bool) -> None:
        if reusable and self._num_computing:
            self.process.later(0.01, self._end, error, reusable)
            return
        self.over = True
        self._ended(error, reusable)
        if not reusable:
            self.process.kill()

    async def _compute(self, computation: Compute, stream: Stream) -> None:
        left_off = False  # superseded, as seen when a shard was begun

        async def go_through(share: Iterator[None]) -> None:
            nonlocal left_off
            while True:
                left_off = self._session.superseded(computation)
                await asyncio.sleep(self._shard_s(computation.job))
                with np.errstate(all="ignore"):
                    if next(share, self) is self:
                        return

        task, parameters = computation.task, computation.parameters
        self._num_computing += 1
        try:
            self._fail_if_due()
            engine = self._engine_for(computation.job)
            if not computation.prepared:
                engine.forget()
            begun = engine.begin(task, parameters, lambda message: self._send(stream, message), lambda: left_off)
            await asyncio.gather(*map(go_through, begun.shares))
            begun.finish()
        except MemoryError as error:
            self._carry(self._session.failed(error))
        else:
            self._carry(self._session.computed())
        finally:
            self._num_computing -= 1

    async def _prepare(self, preparation: Prepare) -> None:
        self._num_computing += 1
        try:
            await asyncio.sleep(self._shard_s(preparation.job))
            self._engine_for(preparation.job).prepare(preparation.front)
        finally:
            self._num_computing -= 1
        self._carry(self._session.computed())

    def _shard_s(self, job: Job) -> float:
        return self._step_s / job.spec.shards * self.slowness * self._random.uniform(0.8, 1.2)

    def _fail_if_due(self) -> None:
        if self.fails:
            self.fails = False
            raise MemoryError("out of memory")

    def _send(self, stream: Stream, message: bytes) -> None:
        if self.wrong_bits and len(message) > codec.NODE_HEADER_BYTES:
            message = _flip(message, self.wrong_bits.pop())
        stream.up.send(message)
        if self.num_copies:
            self.num_copies -= 1
            stream.up.send(message)

    def _engine_for(self, job: Job) -> Engine:
        if self._engine is None or self._engine[0] is not job:
            num_shards = job.spec.shards
            engine = Engine(
                job.spec,
                job.chunk_elements,
                training=jobs.shards(num_shards, training=True),
                validation=jobs.shards(num_shards, training=False),
                num_cpus=self._num_cpus,
            )
            self._engine = (job, engine)
        return self._engine[1]


def _flip(message: bytes, bit: int) -> bytes:
    """Turn over one bit of the values, counted from their end."""
    byte = len(message) - 1 - bit // 8 % (len(message) - codec.NODE_HEADER_BYTES)
    return message[:byte] + bytes([message[byte] ^ 1 << bit % 8]) + message[byte + 1 :]
