"""A client: submits a job and follows it to its end, however often its calls fail, and fetches what came of it."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from lockstep.calls import CALL_S
from lockstep.errors import (
    InvalidSpecError,
    JobStateError,
    ServerError,
    ServerUnavailableError,
    StorageError,
    WaitTimeoutError,
    translate,
)
from lockstep.watching import REDIAL_S, Story
from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_server.lifecycle import ENDED
from tests.simulator.loop import Loop, Process
from tests.simulator.network import Code, End, Failure, Network
from tests.simulator.rpc import answers
from tests.simulator.server import ADDRESS

State = service_pb2.JobState
MAX_REFUSED = 3
HISTORY_S = 30.0  # the longest trouble of a disk, and then some
# A person tries again when the server is away or its disk refuses; a defect of the server shows in its log.
RETRIED = (ServerUnavailableError, WaitTimeoutError, StorageError, ServerError)


class Calls:
    """Calls of one process to the server, with the product's errors."""

    def __init__(self, process: Process, network: Network) -> None:
        self._process = process
        self._network = network
        self._random = random.Random(f"{network.seed}/{process.name}")

    async def many(
        self, method: str, request: Any, answer_type: Any, timeout_s: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """Yield the answers of a call."""
        stream = self._network.call(self._process, ADDRESS, method)
        stream.up.send(request.SerializeToString())
        stream.up.end(End())
        try:
            async with asyncio.timeout(timeout_s):
                async for message in answers(stream):
                    yield answer_type.FromString(message)
        except TimeoutError:
            raise translate(Failure(Code.DEADLINE_EXCEEDED, ""), ADDRESS) from None
        except Failure as failure:
            raise translate(failure, ADDRESS) from None
        finally:
            stream.cancel()

    async def one(self, method: str, request: Any, answer_type: Any = service_pb2.Job) -> Any:
        """Return the first answer, asking again until there is one."""

        async def ask() -> Any:
            async with contextlib.aclosing(self.many(method, request, answer_type, CALL_S)) as found:
                return await anext(found)

        return await self._retried(ask)

    async def whole(self, method: str, request: Any, answer_type: Any) -> Any:
        """Return the answers put together, asking again until all have come."""

        async def ask() -> Any:
            whole = answer_type()
            async for answer in self.many(method, request, answer_type):
                whole.MergeFrom(answer)
            return whole

        return await self._retried(ask)

    async def _retried(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await ask()
            except RETRIED:
                await asyncio.sleep(self._random.uniform(0.1, 2.0))


class Client:
    """One person's program. With `source`, its job starts from that of another, as soon as there is a checkpoint."""

    def __init__(
        self, loop: Loop, network: Network, name: str, spec: job_pb2.JobSpec, source: "Client | None" = None
    ) -> None:
        self.name = name
        self.source = source
        self.job: service_pb2.Job | None = None  # as last seen
        self.was_stopped = False
        self.ended_s = 0.0  # when it saw the end
        self.events: list[service_pb2.Event] = []  # as they were told
        self.kept_events: list[service_pb2.Event] = []  # as they are at the end
        self.history = service_pb2.History()
        self.ledger = service_pb2.Ledger()
        self.models: dict[str, bytes] = {}
        self.done: asyncio.Future[None] = loop.create_future()
        self._spec = spec
        self._loop = loop
        self._process = Process(loop, name)
        self._calls = Calls(self._process, network)
        self._process.start(self._live())

    @property
    def process(self) -> Process:
        """Where it runs."""
        return self._process

    def pause(self, seconds: float) -> bool:
        """Pause the job for a while. Return whether there is one that goes on."""
        return self._order(self._pause(seconds))

    def stop(self) -> bool:
        """Stop the job."""
        self.was_stopped = self._order(self._insist("Stop")) or self.was_stopped
        return self.was_stopped

    def _order(self, order: Any) -> bool:
        if self.job is None or self.job.state in ENDED:
            order.close()
            return False
        self._process.start(order)
        return True

    async def _live(self) -> None:
        try:
            if await self._submit():
                await self._watch()
                await self._fetch()
        except Exception as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)

    async def _find_checkpoint(self, source: "Client") -> bool:
        """Wait until there is one to start from; False if there will be none."""
        while True:
            job = source.job
            if job is not None:
                kept = await self._calls.one("ListCheckpoints", _ask(job), service_pb2.CheckpointList)
                if kept.checkpoints:
                    self._spec.ClearField("initial_parameters")
                    self._spec.start_from.job = job.id
                    return True
                if job.state in ENDED:
                    return False
            await asyncio.sleep(0.5)

    async def _submit(self) -> bool:
        """Submit the job. Return whether there is one: the job that it starts from may come to nothing."""
        request_id, num_refused = f"request of {self.name}", 0
        while self.source is None or await self._find_checkpoint(self.source):
            try:
                request = service_pb2.SubmitRequest(request_id=request_id, spec=self._spec)
                self.job = await self._calls.one("Submit", request)
                return True
            except InvalidSpecError as error:
                num_refused += 1  # the checkpoint that it was to start from was damaged, or is not kept any more
                if "start_from" not in str(error) or num_refused == MAX_REFUSED:
                    raise
        return False

    async def _watch(self) -> None:
        assert self.job is not None
        story, after_event = Story(ADDRESS), 0
        while self.job.state not in ENDED or not after_event:
            request = service_pb2.WatchRequest(job_id=self.job.id, after_event=after_event)
            try:
                async for answer in self._calls.many("Watch", request, service_pb2.WatchResponse):
                    self.job = answer.job
                    story.seen(answer.job, self._loop.time())
                    for event in answer.events:
                        if event.sequence <= after_event:
                            raise AssertionError(f"event {event.sequence} was told after event {after_event}")
                        after_event = event.sequence
                        self.events.append(event)
            except ServerUnavailableError:
                story.lost(self._loop.time())
                await asyncio.sleep(REDIAL_S)
        self.ended_s = self._loop.time()

    async def _fetch(self) -> None:
        """Fetch all that is kept of the job, when all of it is on disk, which may have failed at its end."""
        assert self.job is not None
        request = _ask(self.job)
        while True:
            self.history = await self._calls.whole("GetHistory", request, service_pb2.History)
            last = list(self.history.steps.step)[-1:]
            if self._loop.time() > self.ended_s + HISTORY_S or last >= [self.job.step - 1] or not self.job.step:
                break
            await asyncio.sleep(1.0)
        self.ledger = await self._calls.whole("GetLedger", request, service_pb2.Ledger)
        watch = service_pb2.WatchRequest(job_id=self.job.id)
        self.kept_events = list((await self._calls.one("Watch", watch, service_pb2.WatchResponse)).events)
        for name, which in (("last", service_pb2.WHICH_MODEL_LAST), ("best", service_pb2.WHICH_MODEL_BEST)):
            wanted = service_pb2.DownloadModelRequest(job_id=self.job.id, which=which)
            with contextlib.suppress(JobStateError):  # there is none
                self.models[name] = (await self._calls.whole("DownloadModel", wanted, service_pb2.FilePiece)).data

    async def _pause(self, seconds: float) -> None:
        await self._insist("Pause")
        await asyncio.sleep(seconds)
        while await self._insist("Resume") == State.JOB_STATE_PAUSED:  # a pause that was under way came last
            await asyncio.sleep(1.0)

    async def _insist(self, verb: str) -> "State.ValueType":
        """Ask for something until it is done, or cannot be done. Return the state of the job."""
        assert self.job is not None
        try:
            job: service_pb2.Job = await self._calls.one(verb, _ask(self.job))
        except JobStateError:
            job = await self._calls.one("Get", _ask(self.job))
        return job.state


def _ask(job: service_pb2.Job) -> service_pb2.JobRequest:
    return service_pb2.JobRequest(job_id=job.id)
