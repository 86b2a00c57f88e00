"""Calls of every kind through a real server: each is observed once, at its end, with the code its client saw."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from lockstep_server.interceptor import RpcMetrics
from lockstep_server.metrics import Metrics

Code = grpc.StatusCode
Context = Any


class Recorder(Metrics):
    """Keeps the calls that it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, float]] = []
        self.told = asyncio.Event()

    def rpc(self, method: str, code: str, seconds: float) -> None:
        self.calls.append((method, code, seconds))
        self.told.set()


@dataclass
class Clock:
    """Counts how often it is read; every look takes a second."""

    looks: int = 0

    def __call__(self) -> float:
        self.looks += 1
        return float(self.looks)


@dataclass
class Service:
    """Does with any call what its first message says."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def obey(self, order: bytes, context: Context) -> bytes:
        if order == b"abort":
            await context.abort(Code.NOT_FOUND, "no such thing")
        if order == b"raise":
            raise ValueError("a defect")
        if order == b"set":
            context.set_code(Code.RESOURCE_EXHAUSTED)
        if order == b"hang":
            self.arrived.set()
            await asyncio.Event().wait()
        return order

    async def unary_unary(self, request: bytes, context: Context) -> bytes:
        return await self.obey(request, context)

    async def unary_stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self.obey(request, context)

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b"".join([await self.obey(request, context) async for request in requests])

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.obey(request, context)

    async def writing(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async for request in requests:
            await context.write(await self.obey(request, context))

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Service",
            {
                "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.unary_unary),
                "UnaryStream": grpc.unary_stream_rpc_method_handler(self.unary_stream),
                "StreamUnary": grpc.stream_unary_rpc_method_handler(self.stream_unary),
                "StreamStream": grpc.stream_stream_rpc_method_handler(self.stream_stream),
                "Writing": grpc.stream_stream_rpc_method_handler(self.writing),
            },
        )


@dataclass
class Stage:
    """A server with the interceptor, and a channel to it."""

    recorder: Recorder
    clock: Clock
    service: Service
    channel: grpc.aio.Channel

    async def call(self, method: str, *orders: bytes) -> tuple[list[bytes], grpc.StatusCode]:
        """Make one call; return what came back and the code the client saw."""
        answers = []
        calling = self.start(method, *orders)
        try:
            if method.endswith("Unary"):
                answers.append(await calling)
            else:
                answers += [answer async for answer in calling]
        except grpc.aio.AioRpcError as error:
            return answers, error.code()
        return answers, Code.OK

    def start(self, method: str, *orders: bytes) -> Any:
        """Begin one call."""
        streams_in = not method.startswith("Unary")
        request: Any = iter(orders) if streams_in else orders[0]
        if method.endswith("Unary"):
            make: Any = self.channel.stream_unary if streams_in else self.channel.unary_unary
        else:
            make = self.channel.stream_stream if streams_in else self.channel.unary_stream
        return make(f"/test.Service/{method}")(request)

    async def told(self) -> list[tuple[str, str, float]]:
        """Return what was observed, once there is something: the client may know of an end first."""
        await asyncio.wait_for(self.recorder.told.wait(), 10)
        return self.recorder.calls


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def life() -> None:
        recorder, clock, service = Recorder(), Clock(), Service()
        server = grpc.aio.server(interceptors=[RpcMetrics(recorder, clock)])
        server.add_generic_rpc_handlers((service.handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await scene(Stage(recorder, clock, service, channel))
        finally:
            await server.stop(None)

    asyncio.run(life())


KINDS = ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "Writing"]


@pytest.mark.parametrize("method", KINDS)
def test_a_good_call_is_observed_once_and_gives_what_it_gives_without(method: str) -> None:
    async def scene(stage: Stage) -> None:
        answers, code = await stage.call(method, b"hello")
        expected = [b"first", b"hello"] if method == "UnaryStream" else [b"hello"]
        assert (answers, code) == (expected, Code.OK)
        assert await stage.told() == [(f"test.Service/{method}", "OK", 1.0)]

    play(scene)


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(
    ("order", "expected"), [(b"abort", Code.NOT_FOUND), (b"raise", Code.UNKNOWN), (b"set", Code.RESOURCE_EXHAUSTED)]
)
def test_a_failed_call_is_observed_with_the_code_its_client_saw(
    method: str, order: bytes, expected: grpc.StatusCode
) -> None:
    async def scene(stage: Stage) -> None:
        _, code = await stage.call(method, order)
        assert code is expected
        assert await stage.told() == [(f"test.Service/{method}", expected.name, 1.0)]

    play(scene)


@pytest.mark.parametrize("method", KINDS)
def test_a_call_that_its_client_gives_up_is_observed_as_cancelled(method: str) -> None:
    async def scene(stage: Stage) -> None:
        calling = stage.start(method, b"hang")
        await stage.service.arrived.wait()
        calling.cancel()
        assert await stage.told() == [(f"test.Service/{method}", "CANCELLED", 1.0)]

    play(scene)


@pytest.mark.parametrize("method", ["StreamStream", "Writing"])
def test_the_messages_of_a_stream_are_not_looked_at(method: str) -> None:
    async def scene(stage: Stage) -> None:
        answers, _ = await stage.call(method, *[b"message"] * 100)
        assert len(answers) == 100
        assert len(await stage.told()) == 1
        assert stage.clock.looks == 2

    play(scene)


def test_a_method_that_does_not_exist_gets_no_series() -> None:
    async def scene(stage: Stage) -> None:
        _, code = await stage.call("UnaryNothing", b"")
        assert code is Code.UNIMPLEMENTED
        assert (await stage.call("UnaryUnary", b"x"))[1] is Code.OK
        assert [method for method, _, _ in await stage.told()] == ["test.Service/UnaryUnary"]

    play(scene)
