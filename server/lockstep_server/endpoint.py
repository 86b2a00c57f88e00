"""The port that workers come to: carries calls of Exchange between their sockets and their conversations.

Every socket is read and written on the event loop, without a task or a copy for a message. What a worker sends is
taken in one message after the other, so that one with much to say does not keep the others waiting.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable

from grpc import StatusCode

from lockstep_proto import channels, failpoints
from lockstep_proto.calls import Ended, HalfClosed, Opened, ServerCall
from lockstep_proto.incoming import ConnectionBrokenError
from lockstep_server.exchange import Conversation, Exchange
from lockstep_server.room import own_memory
from lockstep_server.writes import Writes

PATH = channels.EXCHANGE_PATH
log = logging.getLogger(__name__)
BACKLOG = 128
ACCEPT_S = 1.0  # a listener that the system gives no connection, for want of files, say, waits so long
AT_ONCE_BYTES = 1 << 16  # of the rest of a message are waited for: a slow network brings little at a time
ENOUGH_BYTES = 1 << 18  # given to the system at once where there are more messages than one
IDLE_S = 5.0  # a connection without a call is closed after this: a worker begins one at once, and has one
Observe = Callable[[str, str, float], None]  # method, status, seconds


class Endpoint:
    """Listens at one address. `observe` is told of every call at its end. Raises OSError if the port is taken."""

    def __init__(self, exchange: Exchange, host: str, port: int, observe: Observe) -> None:
        self._exchange = exchange
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._connections: set[_Connection] = set()
        self._writes = Writes()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> None:
        """Take workers in."""
        if self._listener.fileno() >= 0:  # it may have been closed meanwhile
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Take no more in, and close all connections."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for connection in list(self._connections):
            connection.close("the server goes down")

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # the worker has gone again
            return
        except OSError as error:
            log.warning("workers cannot come in now: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_S, self.start)
            return
        accepted.setblocking(False)
        channels.prepare(accepted)
        closed = self._connections.discard
        self._connections.add(_Connection(self._exchange, accepted, self._observe, self._writes, closed))


class _Connection:
    """One worker's connection, and the call on it."""

    def __init__(
        self,
        exchange: Exchange,
        connected: socket.socket,
        observe: Observe,
        writes: Writes,
        closed: "Callable[[_Connection], None]",
    ) -> None:
        self._exchange = exchange
        self._socket = connected
        self._observe = observe
        self._writes = writes
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._call = ServerCall(own_memory, channels.MAX_MESSAGE_BYTES)
        self._conversation: Conversation | None = None
        self._opened_s = 0.0
        self._flushing = self._waits_for_room = self._is_closed = False
        self._listens = True
        self._least_bytes = 1  # that have come when the socket is read
        self._loop.add_reader(connected, self._read)
        self._loop.call_later(IDLE_S, self._close_if_idle)
        self.filled()

    # What the conversation wants.

    def filled(self) -> None:
        """Take note that there is something in the outbox."""
        if not (self._flushing or self._waits_for_room or self._is_closed):
            self._flushing = True
            self._writes.add(self)

    def listen(self, listens: bool) -> None:
        """Take in what the worker sends, or leave it to the network: it then sends no more than that and slots hold."""
        if not self._is_closed and listens is not self._listens:
            self._listens = listens
            if listens:
                self._loop.add_reader(self._socket, self._read)
            else:
                self._loop.remove_reader(self._socket)

    def end(self, code: StatusCode, reason: str) -> None:
        """End the call at once."""
        self.listen(True)
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.ended()
            self._call.end(code, reason)
            self._observe(PATH.removeprefix("/"), code.name, time.perf_counter() - self._opened_s)
            self._loop.call_later(IDLE_S, self._close_if_idle)
            self.filled()

    def close(self, reason: str) -> None:
        """Close the connection."""
        if self._is_closed:
            return
        self._is_closed = True
        self.end(StatusCode.CANCELLED, reason)
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        with contextlib.suppress(OSError):
            self._send()  # what there is room for
        self._socket.close()
        self._closed(self)

    def _close_if_idle(self) -> None:
        if self._conversation is None:
            self.close("there is no call")

    # From the socket.

    def _read(self) -> None:
        try:
            num_bytes = self._socket.recv_into(self._call.buffer())
        except BlockingIOError:
            return
        except OSError as error:
            self.close(str(error))
            return
        if num_bytes == 0:
            self.close("the worker closed the connection")
            return
        self._writes.begin()
        try:
            for event in self._call.received(num_bytes):
                if not isinstance(event, memoryview):
                    self._happened(event)
                elif self._conversation is not None:
                    self._conversation.received(event)
        except ConnectionBrokenError as error:
            self._call.fail(str(error))
            self.close(str(error))
        except Exception as error:
            log.exception("a defect of the exchange")
            self.end(StatusCode.UNKNOWN, f"a defect: {error!r}")
        if self._call.outgoing.buffers:  # answers of the connection itself
            self.filled()
        self._writes.end()
        self._wait_for(min(self._call.wanted(), AT_ONCE_BYTES))

    def _wait_for(self, num_bytes: int) -> None:
        if num_bytes != self._least_bytes and not self._is_closed:
            self._least_bytes = num_bytes
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, num_bytes)

    def _happened(self, event: Opened | HalfClosed | Ended) -> None:
        match event:
            case Opened(path) if path == PATH:
                self._opened_s = time.perf_counter()
                self._conversation = self._exchange.open(self)
            case Opened(path):
                self._call.end(StatusCode.UNIMPLEMENTED, f"there is only {PATH} here, no {path}")
            case HalfClosed():
                self.end(StatusCode.OK, "")
            case Ended(code, reason):
                self.end(code, reason)

    # To the socket.

    def flush(self) -> None:
        """Write what the worker takes now, and the rest when it does."""
        self._flushing = False
        if self._is_closed:
            return
        try:
            while self._fill():
                self._send()
        except BlockingIOError:
            if not self._waits_for_room:
                self._waits_for_room = True
                self._loop.add_writer(self._socket, self.flush)
            return
        except OSError as error:
            self.close(str(error))
            return
        if self._waits_for_room:
            self._waits_for_room = False
            self._loop.remove_writer(self._socket)

    def _fill(self) -> bool:
        """Take messages out of the outbox, as many as are written at once. Return whether there is something."""
        outgoing, conversation = self._call.outgoing, self._conversation
        if conversation is not None:
            following = conversation.next
            while outgoing.num_bytes < ENOUGH_BYTES and not outgoing.waits and (pieces := following()):
                failpoints.hit("server.exchange.write")
                self._call.send(*pieces)
            if conversation.outbox.over:
                self.end(StatusCode.OK, "")
        return outgoing.num_bytes > 0

    def _send(self) -> None:
        outgoing = self._call.outgoing
        while outgoing.buffers:
            outgoing.sent(self._socket.sendmsg(outgoing.next()))
