"""A client: submits a job and follows it to its end, however often its calls fail."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from lockstep.calls import CALL_S
from lockstep.errors import (
    JobStateError,
    ServerError,
    ServerUnavailableError,
    StorageError,
    WaitTimeoutError,
    translate,
)
from lockstep.watching import REDIAL_S
from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_server.lifecycle import ENDED
from tests.simulator.loop import Loop, Process
from tests.simulator.network import Code, End, Failure, Network
from tests.simulator.rpc import answers
from tests.simulator.server import ADDRESS

State = service_pb2.JobState
HISTORY_S = 30.0  # the longest trouble of a disk, and then some
# A person tries again when the server is away or its disk refuses; a defect of the server shows in its log.
RETRIED = (ServerUnavailableError, WaitTimeoutError, StorageError, ServerError)


class Client:
    """One person's program."""

    def __init__(self, loop: Loop, network: Network, name: str, spec: job_pb2.JobSpec) -> None:
        self.process = Process(loop, name)
        self.job: service_pb2.Job | None = None  # as last seen
        self.events: list[service_pb2.Event] = []  # as they were told
        self.kept_events: list[service_pb2.Event] = []  # as they are at the end
        self.history = service_pb2.History()
        self.done: asyncio.Future[None] = loop.create_future()
        self.was_stopped = False
        self.ended_s = 0.0  # when it saw the end
        self._network = network
        self._random = random.Random(f"{network.seed}/{name}")
        self._spec = spec
        self.process.start(self._follow())

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
        self.process.start(order)
        return True

    async def _follow(self) -> None:
        request = service_pb2.SubmitRequest(request_id=f"request of {self.process.name}", spec=self._spec)
        try:
            self.job = await self._until_answered("Submit", request)
            await self._watch()
            self.ended_s = self._network.loop.time()
            self.history = await self._whole_history()
            self.kept_events = await self._retried(self._read_events)
        except Exception as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)

    async def _watch(self) -> None:
        assert self.job is not None
        after_event = 0
        while self.job.state not in ENDED or not after_event:
            request = service_pb2.WatchRequest(job_id=self.job.id, after_event=after_event)
            try:
                async for answer in self._call("Watch", request, service_pb2.WatchResponse):
                    self.job = answer.job
                    for event in answer.events:
                        if event.sequence <= after_event:
                            raise AssertionError(f"event {event.sequence} was told after event {after_event}")
                        after_event = event.sequence
                        self.events.append(event)
            except ServerUnavailableError:
                await asyncio.sleep(REDIAL_S)

    async def _pause(self, seconds: float) -> None:
        await self._insist("Pause")
        await asyncio.sleep(seconds)
        while await self._insist("Resume") == State.JOB_STATE_PAUSED:  # a pause that was under way came last
            await asyncio.sleep(1.0)

    async def _insist(self, verb: str) -> "State.ValueType":
        """Ask for something until it is done, or cannot be done. Return the state of the job."""
        assert self.job is not None
        request = service_pb2.JobRequest(job_id=self.job.id)
        try:
            return (await self._until_answered(verb, request)).state
        except JobStateError:
            return (await self._until_answered("Get", request)).state

    async def _whole_history(self) -> service_pb2.History:
        """The history, when all of it is on disk, which may have failed at the end of the job."""
        assert self.job is not None
        while True:
            history: service_pb2.History = await self._retried(self._read_history)
            if len(history.steps.step) >= self.job.step or self._network.loop.time() > self.ended_s + HISTORY_S:
                return history
            await asyncio.sleep(1.0)

    async def _read_history(self) -> service_pb2.History:
        assert self.job is not None
        whole = service_pb2.History()
        async for piece in self._call("GetHistory", service_pb2.JobRequest(job_id=self.job.id), service_pb2.History):
            whole.MergeFrom(piece)
        return whole

    async def _read_events(self) -> list[service_pb2.Event]:
        assert self.job is not None
        request = service_pb2.WatchRequest(job_id=self.job.id)
        async with contextlib.aclosing(self._call("Watch", request, service_pb2.WatchResponse)) as answers:
            return list((await anext(answers)).events)

    async def _until_answered(self, method: str, request: Any) -> service_pb2.Job:
        async def ask() -> service_pb2.Job:
            async with contextlib.aclosing(self._call(method, request, service_pb2.Job, timeout_s=CALL_S)) as answers:
                answer: service_pb2.Job = await anext(answers)
                return answer

        return await self._retried(ask)

    async def _retried(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await ask()
            except RETRIED:
                await asyncio.sleep(self._random.uniform(0.1, 2.0))

    async def _call(
        self, method: str, request: Any, answer_type: Any, timeout_s: float | None = None
    ) -> AsyncGenerator[Any, None]:
        stream = self._network.call(self.process, ADDRESS, method)
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
