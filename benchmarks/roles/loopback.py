"""The bytes of an exchange through plain sockets: what no server of parameters can be faster than. Run as a process.

One end takes the chunks of all connections and, as soon as one has come on each of them, sends a chunk down on each:
the order in which a step's bytes depend on each other, and nothing else. Each end is one thread.
"""

import argparse
import contextlib
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

READ_BYTES = 1 << 20


@dataclass
class Connection:
    """One socket: bytes that have come, and bytes that may go."""

    socket: socket.socket
    num_in: int = 0
    num_out: int = 0
    may_send: int = 0
    writing: bool = False


class Link:
    """Some connections, carried on in one thread."""

    def __init__(self, sockets: list[socket.socket], chunk_bytes: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._out = memoryview(bytes(chunk_bytes))
        self._in = memoryview(bytearray(READ_BYTES))
        self.connections = [Connection(s) for s in sockets]
        for connection in self.connections:
            connection.socket.setblocking(False)
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def allow(self, num_bytes: int) -> None:
        """Have so many more bytes sent on each connection."""
        for connection in self.connections:
            connection.may_send += num_bytes
            self._send(connection)

    def come(self) -> Iterator[Connection]:
        """Wait for something to happen, and yield what got bytes. Sends what may be sent."""
        for key, events in self._selector.select():
            connection: Connection = key.data
            if events & selectors.EVENT_WRITE:
                self._send(connection)
            if events & selectors.EVENT_READ:
                num_read = connection.socket.recv_into(self._in)
                if num_read == 0:
                    raise EOFError
                connection.num_in += num_read
                yield connection

    def finish(self) -> None:
        """Send all that may be sent. What has closed has got it."""
        for connection in self.connections:
            connection.socket.setblocking(True)
            with contextlib.suppress(ConnectionError):
                self._send(connection)

    def _send(self, connection: Connection) -> None:
        try:
            while connection.num_out < connection.may_send:
                at = connection.num_out % len(self._out)
                left = connection.may_send - connection.num_out
                connection.num_out += connection.socket.send(self._out[at : at + left])
        except BlockingIOError:
            self._watch(connection, writing=True)
        else:
            self._watch(connection, writing=False)

    def _watch(self, connection: Connection, *, writing: bool) -> None:
        if connection.writing != writing:
            connection.writing = writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            self._selector.modify(connection.socket, events, connection)


def serve(num_connections: int, chunk_bytes: int) -> None:
    """Be the server's end, until a process at the other end has got all it was to get, and the others have, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        link = Link([listener.accept()[0] for _ in range(num_connections)], chunk_bytes)
    answered = 0
    try:
        while True:
            for _ in link.come():
                whole = min(connection.num_in for connection in link.connections) // chunk_bytes
                if whole > answered:
                    link.allow((whole - answered) * chunk_bytes)
                    answered = whole
    except (EOFError, ConnectionResetError):
        link.finish()


def take_part(port: int, num_connections: int, chunk_bytes: int, *, num_chunks: int, warmup: int, steps: int) -> float:
    """Be some workers' end. Return the seconds of the steps after the first `warmup`."""
    link = Link([socket.create_connection(("127.0.0.1", port)) for _ in range(num_connections)], chunk_bytes)
    step_bytes = num_chunks * chunk_bytes
    begun = 0.0
    for step in range(warmup + steps):
        if step == warmup:
            begun = time.perf_counter()
        link.allow(step_bytes)
        while min(connection.num_in for connection in link.connections) < (step + 1) * step_bytes:
            for _ in link.come():
                pass
    return time.perf_counter() - begun


def main() -> None:
    """Be one end; print the port, or the seconds."""
    parser = argparse.ArgumentParser()
    for name in ("port", "num-chunks", "warmup", "steps"):
        parser.add_argument(f"--{name}", type=int, default=0)
    for name in ("num-connections", "chunk-bytes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = vars(parser.parse_args())
    if not options["port"]:
        serve(options["num_connections"], options["chunk_bytes"])
        return
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(take_part(**options)))


if __name__ == "__main__":
    main()
