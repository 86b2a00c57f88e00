"""gRPC as the product's servicers see it, on the streams of the network."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from lockstep_server.exchange import Conversation, Exchange
from tests.simulator.loop import Process
from tests.simulator.network import Code, End, Failure, Network, Stream

Handlers = dict[str, Callable[[Stream], Any]]


class Context:
    """What a servicer does to its call."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.failure: Failure | None = None

    async def write(self, message: bytes) -> None:
        self._stream.down.send(message)
        await self._stream.down.room()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self.failure = Failure(code, details, trailing_metadata)
        raise grpc.aio.AbortError(details)


def serve(network: Network, address: str, process: Process, handlers: Handlers) -> None:
    """Answer calls in a process; a handler makes the coroutine that serves a stream."""

    def accept(stream: Stream) -> None:
        stream.up.broke = process.start(_answer(stream, handlers[stream.method])).cancel

    network.serve(address, process, accept)


def unary(method: Callable[..., Any], request_type: Any) -> Callable[[Stream], Any]:
    """A handler for a method with one request and one answer."""

    async def answer(stream: Stream, context: Context) -> None:
        request = await anext(requests(stream, request_type.FromString))
        response = await method(request, context)
        stream.down.send(response.SerializeToString())

    return lambda stream: _with_context(answer, stream)


def streaming(method: Callable[..., Any], request_type: Any) -> Callable[[Stream], Any]:
    """A handler for a method with one request and many answers."""

    async def answer(stream: Stream, context: Context) -> None:
        request = await anext(requests(stream, request_type.FromString))
        async for response in method(request, context):
            await context.write(response.SerializeToString())

    return lambda stream: _with_context(answer, stream)


def both_ways(method: Callable[..., Any], request_type: Any) -> Callable[[Stream], Any]:
    """A handler for a method with many requests and many answers."""

    async def answer(stream: Stream, context: Context) -> None:
        async for response in method(requests(stream, request_type.FromString), context):
            await context.write(response.SerializeToString())

    return lambda stream: _with_context(answer, stream)


def exchange(served: Exchange) -> Callable[[Stream], Any]:
    """A handler for the workers' calls."""

    async def answer(stream: Stream, context: Context) -> None:
        call = _Call()
        conversation = served.open(call)
        writing = asyncio.ensure_future(_write(conversation, call, context))
        reading = asyncio.ensure_future(_read(conversation, call, stream))
        try:
            await asyncio.wait((writing, reading), return_when=asyncio.FIRST_COMPLETED)
            if call.failure is not None:
                raise call.failure
        finally:
            for task in (writing, reading):
                task.cancel()
            conversation.ended()

    return lambda stream: _with_context(answer, stream)


class _Call:
    """What carries a conversation."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.failure: Failure | None = None
        self.listens = asyncio.Event()
        self.listens.set()

    def filled(self) -> None:
        self.changed.set()

    def listen(self, listens: bool) -> None:
        (self.listens.set if listens else self.listens.clear)()

    def end(self, code: grpc.StatusCode, reason: str) -> None:
        self.failure = Failure(code, reason)
        self.changed.set()


async def _write(conversation: Conversation, call: _Call, context: Context) -> None:
    while call.failure is None:
        pieces = conversation.next()
        if pieces:
            await context.write(b"".join(pieces))
        elif conversation.outbox.over:
            return
        else:
            call.changed.clear()
            await call.changed.wait()


async def _read(conversation: Conversation, call: _Call, stream: Stream) -> None:
    async for message in requests(stream, bytes):
        await call.listens.wait()
        conversation.received(message)


async def requests(stream: Stream, decode: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    """What comes up a stream until its orderly end; a broken one has its handler cancelled."""
    while True:
        message = await stream.up.read()
        if not isinstance(message, End):
            yield decode(message)
        elif message.failure is None:
            return
        else:
            raise asyncio.CancelledError


async def answers(stream: Stream) -> AsyncIterator[bytes]:
    """What comes down a stream. Raises Failure."""
    while True:
        message = await stream.down.read()
        if not isinstance(message, End):
            yield message
        elif message.failure is None:
            return
        else:
            raise message.failure


async def _with_context(answer: Any, stream: Stream) -> None:
    context = Context(stream)
    try:
        await answer(stream, context)
    except grpc.aio.AbortError:
        assert context.failure is not None
        raise context.failure from None


async def _answer(stream: Stream, handler: Callable[[Stream], Any]) -> None:
    failure: Failure | None = Failure(Code.CANCELLED, "the handler was cancelled")
    try:
        await handler(stream)
        failure = None
    except Failure as told:
        failure = told
    finally:
        stream.down.end(End(failure))
