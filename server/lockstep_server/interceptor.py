"""Measures every call, once, at its end."""

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
            started = self._clock()
            failed = True
            try:
                result = behaviour(request, context)
                if isinstance(result, AsyncIterator):
                    async for response in result:
                        await context.write(response)
                    result = None
                else:
                    result = await result
                failed = False
                return result
            finally:
                self._metrics.rpc(method, _code(context, failed=failed), self._clock() - started)

        return call


def _code(context: Any, *, failed: bool) -> str:
    if context.cancelled():
        return "CANCELLED"
    code = context.code()
    if isinstance(code, int):
        code = next(known for known in grpc.StatusCode if known.value[0] == code)
    if code is None or code is grpc.StatusCode.OK:
        return "UNKNOWN" if failed else "OK"
    return str(code.name)
