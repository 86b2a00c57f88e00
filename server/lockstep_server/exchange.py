"""TrainingService: hands a worker's stream to the run of its job."""

from collections.abc import Callable
from typing import Any

import grpc

from lockstep_proto import codec, failpoints
from lockstep_server.run import JobRun


class ExchangeServicer:
    """Serves Exchange. `find_run` returns the run of a job, None while it does not run."""

    def __init__(self, find_run: Callable[[str], JobRun | None]) -> None:
        self._find_run = find_run

    async def exchange(self, messages: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Serve one worker. A worker whose job does not run yet, or any more, is told to dial again."""
        first = await anext(aiter(messages), None)
        if first is None or isinstance(first, codec.NodeChunk) or first.WhichOneof("kind") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a hello")
        if first.hello.num_cpus < 1:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a worker has at least one CPU")
        failpoints.hit("server.exchange.hello")
        run = self._find_run(first.hello.job_id)
        if run is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"job {first.hello.job_id} does not run now")
        assert run is not None
        await run.serve(first.hello, messages, context.write)


def add_exchange(server: grpc.aio.Server, servicer: ExchangeServicer) -> None:
    """Register the servicer, with the codec in place of the generated (de)serialisers."""
    handler: Any = grpc.stream_stream_rpc_method_handler(
        servicer.exchange, request_deserializer=codec.decode_worker_message, response_serializer=None
    )
    service = grpc.method_handlers_generic_handler("lockstep.v1.TrainingService", {"Exchange": handler})
    server.add_generic_rpc_handlers((service,))
