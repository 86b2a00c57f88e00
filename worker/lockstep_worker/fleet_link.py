"""The fleet's connection to the server: dialled again for as long as the fleet lives."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator

import grpc

from lockstep_proto import channels
from lockstep_proto.v1 import training_pb2, training_pb2_grpc

log = logging.getLogger(__name__)
DIAL_S = 10.0  # for one attempt, in which gRPC itself tries several times
REDIAL_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # waits between attempts; the last one repeats


class FleetStream:
    """One connection. What is sent after its end is lost: a later stream begins with the whole state anyway."""

    def __init__(self) -> None:
        self._outgoing: queue.SimpleQueue[training_pb2.FleetMessage | None] = queue.SimpleQueue()

    def send(self, message: training_pb2.FleetMessage) -> None:
        """Send a message."""
        self._outgoing.put(message)

    def close(self) -> None:
        """Send nothing more."""
        self._outgoing.put(None)

    def messages(self) -> Iterator[training_pb2.FleetMessage]:
        """Yield what is to be sent, and heartbeats between."""
        while True:
            try:
                message = self._outgoing.get(timeout=channels.FLEET_HEARTBEAT_S)
            except queue.Empty:
                message = training_pb2.FleetMessage(heartbeat=training_pb2.Heartbeat())
            if message is None:
                return
            yield message


class FleetLink:
    """Calls `connected` with every new stream, `ordered` with every message from it and `disconnected` at its end.

    The calls come in a thread of its own. A server that is gone without a word is noticed by the channel's keepalive.
    It ends by itself, with a call of `replaced`, when another fleet has attached: two that dialled again and again
    would drive each other out for ever.
    """

    def __init__(
        self,
        server: str,
        connected: Callable[[FleetStream], None],
        ordered: Callable[[training_pb2.FleetOrders], None],
        disconnected: Callable[[], None],
        replaced: Callable[[], None],
    ) -> None:
        self._server = server
        self._connected = connected
        self._ordered = ordered
        self._disconnected = disconnected
        self._replaced = replaced
        self._stream: FleetStream | None = None
        self._has_orders = False  # from the present stream: only then it was of use
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-link", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the connection in order."""
        self._closing.set()
        if self._stream is not None:
            self._stream.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        num_failed, told = 0, ""  # failures in a row; the last reason that was logged
        while not self._closing.is_set():
            self._has_orders = False
            with channels.connect(self._server) as channel:
                try:
                    grpc.channel_ready_future(channel).result(timeout=DIAL_S)
                    self._serve(channel)
                    reason = "the server closed the stream"
                except grpc.FutureTimeoutError:
                    reason = "no answer"
                except grpc.RpcError as error:
                    if error.code() == grpc.StatusCode.ABORTED:
                        self._replaced()
                        return
                    reason = error.details() or error.code().name
                except Exception as error:
                    log.exception("a defect of the fleet's connection")
                    reason = f"a defect: {error!r}"
            if reason != told and not self._closing.is_set():
                log.warning("not connected to the server at %s: %s; dialling again", self._server, reason)
                told = reason
            if self._has_orders:
                num_failed, told = 0, ""
            self._closing.wait(REDIAL_S[min(num_failed, len(REDIAL_S) - 1)])
            num_failed += 1

    def _serve(self, channel: grpc.Channel) -> None:
        stream = self._stream = FleetStream()
        try:
            call = training_pb2_grpc.FleetServiceStub(channel).Attach(stream.messages())
            self._connected(stream)
            for orders in call:
                self._has_orders = True
                self._ordered(orders)
        finally:
            stream.close()
            self._disconnected()
