"""The fleet's stream to the server; dials again for as long as the fleet lives."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import grpc

from lockstep_proto import channels
from lockstep_proto.v1 import training_pb2, training_pb2_grpc

HEARTBEAT_S = 5.0
REDIAL_S = 0.5


class FleetLink:
    """Calls `connected` at every new stream and `ordered` with every message of it, from a thread of its own.

    When another fleet attaches to the server it calls `replaced`, and dials no more.
    """

    def __init__(
        self,
        server: str,
        *,
        connected: Callable[[], None],
        ordered: Callable[[training_pb2.FleetOrders], None],
        replaced: Callable[[], None],
    ) -> None:
        self._server = server
        self._connected = connected
        self._ordered = ordered
        self._replaced = replaced
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closing = threading.Event()
        threading.Thread(target=self._run, name="fleet-link", daemon=True).start()

    def send(self, message: training_pb2.FleetMessage) -> None:
        """Send a message on the present stream; a later stream begins with the whole state anyway."""
        self._outgoing.put(message)

    def close(self) -> None:
        """End the stream."""
        self._closing.set()
        self._outgoing.put(None)

    def _run(self) -> None:
        while not self._closing.is_set():
            with channels.connect(self._server) as channel:
                try:
                    grpc.channel_ready_future(channel).result(timeout=channels.KEEPALIVE_MS / 1000)
                    self._stream(channel)
                except grpc.FutureTimeoutError:
                    continue
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.ABORTED:  # another fleet has this one's place
                        self._replaced()
                        return
            self._closing.wait(REDIAL_S)

    def _stream(self, channel: grpc.Channel) -> None:
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outgoing = outgoing
        self._connected()
        heartbeat = training_pb2.FleetMessage(heartbeat=training_pb2.Heartbeat())

        def messages() -> Any:
            while not self._closing.is_set() and self._outgoing is outgoing:
                try:
                    message = outgoing.get(timeout=HEARTBEAT_S)
                except queue.Empty:
                    message = heartbeat
                if message is None:
                    return
                yield message

        for orders in training_pb2_grpc.FleetServiceStub(channel).Attach(messages()):
            self._ordered(orders)
