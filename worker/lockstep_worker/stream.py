"""A worker's end of the exchange with the server: one call on a connection of its own.

One thread reads, any may send. What is sent goes to the socket in the thread that sends it; only what there is no room
for is left to a thread that waits for it.
"""

import socket
import threading
from collections.abc import Generator

from lockstep_proto import channels
from lockstep_proto.calls import ClientCall, Ended
from lockstep_proto.incoming import BUFFER_BYTES, ConnectionBrokenError

CONNECT_S = 5.0


class Stream:
    """A connection that is dialled by whoever first reads `messages`. What is sent before goes then."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._rooms = [memoryview(bytearray()) for _ in range(2)]
        self._call = ClientCall(server, channels.EXCHANGE_PATH, self._allocate, channels.MAX_MESSAGE_BYTES)
        self._lock = threading.Lock()  # around the call and what follows
        self._changed = threading.Condition(self._lock)
        self._socket: socket.socket | None = None
        self._is_closed = False
        self._waits_for_room = False  # the writing thread has the socket

    def messages(self) -> Generator[memoryview, None, None]:
        """Dial and yield what comes; a message is good until the next is asked for. Raises OSError, CallEndedError."""
        connected = self._dial()
        writing = threading.Thread(target=self._write, args=[connected], name="worker_write", daemon=True)
        writing.start()
        try:
            yield from self._read(connected)
        finally:
            self.cancel()
            writing.join()
            connected.close()

    def send(self, message: bytes) -> None:
        """Send a message; what is sent after the end of the stream is lost."""
        with self._lock:
            self._call.send(message)
            self._flush()

    def finish(self) -> None:
        """Send nothing more than what was sent."""
        with self._lock:
            self._call.finish()
            self._flush()

    def cancel(self) -> None:
        """Close it at once."""
        with self._lock:
            self._is_closed = True
            if self._socket is not None:
                _shut(self._socket)
            self._changed.notify_all()

    def _dial(self) -> socket.socket:
        host, port = channels.exchange_address(self._server)
        try:
            connected = socket.create_connection((host, port), CONNECT_S)
        except OSError as error:
            raise CallEndedError(f"no connection to its port {port}, which workers come to: {error}") from error
        connected.settimeout(None)
        channels.prepare(connected)
        with self._lock:
            self._socket = connected
            if self._is_closed:
                _shut(connected)
            self._flush()
        return connected

    def _read(self, connected: socket.socket) -> Generator[memoryview, None, None]:
        while num_bytes := connected.recv_into(self._call.buffer()):
            with self._lock:
                try:
                    events = self._call.received(num_bytes)
                except ConnectionBrokenError as error:
                    raise CallEndedError(f"no server of Lockstep: {error}") from error
                self._flush()
            for event in events:
                if isinstance(event, memoryview):
                    yield event
                elif isinstance(event, Ended):
                    raise CallEndedError(event.reason or "the server closed the stream")
        raise CallEndedError("the server closed the connection")

    def _flush(self) -> None:
        """Write what there is room for; the lock is held."""
        outgoing = self._call.outgoing
        while self._socket is not None and outgoing.buffers and not self._waits_for_room:
            try:
                outgoing.sent(self._socket.sendmsg(outgoing.next(), [], socket.MSG_DONTWAIT))
            except BlockingIOError:
                self._waits_for_room = True
                self._changed.notify_all()
            except OSError:  # the reading thread sees it, too
                outgoing.buffers.clear()

    def _write(self, connected: socket.socket) -> None:
        """Write what there was no room for."""
        outgoing = self._call.outgoing
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._waits_for_room or self._is_closed)
                if self._is_closed:
                    return
                buffers = outgoing.next()
            try:
                num_bytes = connected.sendmsg(buffers)
            except OSError:
                return
            with self._lock:
                outgoing.sent(num_bytes)
                self._waits_for_room = bool(outgoing.buffers)

    def _allocate(self, num_bytes: int) -> memoryview:
        """Make the room for a message. Large ones take turns in two rooms: one has been used when the next is whole."""
        if num_bytes <= BUFFER_BYTES:
            return memoryview(bytearray(num_bytes))
        self._rooms.reverse()
        if len(self._rooms[0]) < num_bytes:
            self._rooms[0] = memoryview(bytearray(num_bytes))
        return self._rooms[0][:num_bytes]


class CallEndedError(Exception):
    """The server ended the call, or is gone."""


def _shut(connected: socket.socket) -> None:
    """End both directions; whoever waits for either returns."""
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended already
        return
