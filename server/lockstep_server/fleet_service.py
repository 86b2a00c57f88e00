"""FleetService: carries the fleet's news to the scheduler, and its orders back."""

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from lockstep_proto import failpoints
from lockstep_proto.channels import FLEET_LEASE_S
from lockstep_proto.v1 import training_pb2, training_pb2_grpc
from lockstep_server.fleet_link import Attachment
from lockstep_server.scheduler import Scheduler
from lockstep_server.status import Context, translated

log = logging.getLogger(__name__)


class FleetService(training_pb2_grpc.FleetServiceServicer):
    """The servicer."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def Attach(
        self,
        request_iterator: AsyncIterator[training_pb2.FleetMessage],
        context: Context,
    ) -> AsyncIterator[training_pb2.FleetOrders]:
        """Serve one fleet until its stream ends or another takes its place."""
        attachment = self._scheduler.fleet.attach()
        log.info("a fleet has attached")
        listening = asyncio.create_task(self._listen(request_iterator, attachment))
        try:
            async with translated(context):
                async for orders in attachment.orders():
                    failpoints.hit("server.fleet.orders")
                    yield orders
                if attachment.replaced:
                    await context.abort(
                        grpc.StatusCode.ABORTED, "another fleet has attached and takes this one's place"
                    )
                if attachment.silent:
                    words = f"the fleet was silent for more than {FLEET_LEASE_S:g} s"
                    log.warning(words)
                    await context.abort(grpc.StatusCode.UNAVAILABLE, words)
                await listening
        finally:
            listening.cancel()
            self._scheduler.detached(attachment)
            log.info("a fleet has gone")

    async def _listen(self, messages: AsyncIterator[training_pb2.FleetMessage], attachment: Attachment) -> None:
        try:
            async for message in messages:
                attachment.heard()
                if self._scheduler.fleet.is_current(attachment):
                    self._hear(message)
        finally:
            attachment.close()

    def _hear(self, message: training_pb2.FleetMessage) -> None:
        failpoints.hit("server.fleet.heard")
        match message.WhichOneof("kind"):
            case "resources":
                self._scheduler.resources(message.resources)
            case "data_loaded":
                self._scheduler.data_loaded(message.data_loaded)
            case "data_failed":
                self._scheduler.data_failed(message.data_failed)
            case "worker_exited":
                self._scheduler.worker_exited(message.worker_exited)
