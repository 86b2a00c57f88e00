"""A worker's end of the exchange with the server: one call on a connection of its own.

One thread reads at a time, any may send. What is sent goes to the socket in the thread that sends it; only what there
is no room for is left to a thread that waits for it.
"""

import socket
import threading
from collections.abc import Iterator

from lockstep_proto import channels
from lockstep_proto.calls import ClientCall, Ended
from lockstep_proto.incoming import BUFFER_BYTES, ConnectionBrokenError

CONNECT_S = 5.0


class Stream:
    """A connection that is dialled by whoever first reads. What is sent before goes then."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._rooms = [memoryview(bytearray()) for _ in range(2)]
        self._call = ClientCall(server, channels.EXCHANGE_PATH, self._allocate, channels.MAX_MESSAGE_BYTES)
        self._lock = threading.Lock()  # around the call and what follows
        self._changed = threading.Condition(self._lock)
        self._socket: socket.socket | None = None
        self._writing: threading.Thread | None = None
        self.drained = True  # all that had come was taken; known to who reads
        self._is_closed = False
        self._waits_for_room = False  # the writing thread has the socket

    def receive(self, *, wait: bool = True) -> Iterator[memoryview]:
        """Yield the messages that the next bytes complete, if any; a message is good until the next is asked for.

        Without `wait`, only bytes that are there already are taken. Raises OSError, CallEndedError.
        """
        if self._socket is None:
            self._dial()
        assert self._socket is not None
        buffer, all_of_it = self._call.buffer(), socket.MSG_WAITALL if self._call.wanted() > 1 else 0
        try:
            num_bytes = self._socket.recv_into(buffer, 0, all_of_it if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.drained = True
            return
        if num_bytes == 0:
            raise CallEndedError("the server closed the connection")
        self.drained = num_bytes < len(buffer)
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

    def close(self) -> None:
        """Close it, when nobody reads any more."""
        self.cancel()
        if self._writing is not None:
            self._writing.join()
        if self._socket is not None:
            self._socket.close()

    def _dial(self) -> None:
        host, port = channels.exchange_address(self._server)
        try:
            connected = socket.create_connection((host, port), CONNECT_S)
        except OSError as error:
            raise CallEndedError(f"no connection to its port {port}, which workers come to: {error}") from error
        connected.settimeout(None)
        channels.prepare(connected)
        self._writing = threading.Thread(target=self._write, args=[connected], name="worker_write", daemon=True)
        self._writing.start()
        with self._lock:
            self._socket = connected
            if self._is_closed:
                _shut(connected)
            self._flush()

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
