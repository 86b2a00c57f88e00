"""Measures every call, once, at its end."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from lockstep_server.metrics import Metrics


class RpcMetrics(grpc.aio.ServerInterceptor):
    """Observes seconds by method and status code. The messages of a stream pass it by."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._metrics = metrics
        self._clock = clock

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the handler of a call."""
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method.removeprefix("/")
        streams = handler.response_streaming
        kind = ("stream" if handler.request_streaming else "unary") + "_" + ("stream" if streams else "unary")
        behaviour = getattr(handler, kind)
        wrapped = self._wrap(behaviour, method)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def _wrap(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            started_s = self._clock()
            code = grpc.StatusCode.UNKNOWN.name
            try:
                response = await _answer(behaviour, request, context)
                code = _code_of(context) or grpc.StatusCode.OK.name
                return response
            except asyncio.CancelledError:  # by the client, its deadline, or the end of its connection
                code = grpc.StatusCode.CANCELLED.name
                raise
            except Exception:
                code = _code_of(context) or code
                raise
            finally:
                self._metrics.rpc(method, code, self._clock() - started_s)

        return call


async def _answer(behaviour: Any, request: Any, context: Any) -> Any:
    answer = behaviour(request, context)
    if not isinstance(answer, AsyncIterator):
        return await answer
    async for response in answer:
        await context.write(response)
    return None


def _code_of(context: Any) -> str | None:
    """Return the name of the code that a handler has set, by hand or by abort; None if it has set none."""
    code = context.code()
    return next((known.name for known in grpc.StatusCode if code and code in (known, known.value[0])), None)
