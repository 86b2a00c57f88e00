"""Bytes go on unchanged, in both directions, and not before their time."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.roles.relay import serve

DELAY_S = 0.05
MESSAGE = bytes(range(256)) * 4096  # more than one read


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection with a relay in its middle."""
    with socket.create_server(("127.0.0.1", 0)) as target, socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (listener, target.getsockname(), DELAY_S)
        threading.Thread(target=serve, args=arguments, daemon=True).start()
        with socket.create_connection(listener.getsockname()) as near:
            far, _ = target.accept()
            with far:
                yield near, far


def receive(end: socket.socket) -> bytes:
    data = bytearray()
    while len(data) < len(MESSAGE) and (more := end.recv(1 << 16)):
        data += more
    return bytes(data)


@pytest.mark.parametrize("back", [False, True])
def test_bytes_go_on_unchanged_after_a_while(ends: tuple[socket.socket, socket.socket], back: bool) -> None:
    source, target = reversed(ends) if back else ends
    begun = time.monotonic()
    sending = threading.Thread(target=source.sendall, args=[MESSAGE])
    sending.start()
    assert receive(target) == MESSAGE
    assert time.monotonic() - begun >= DELAY_S
    sending.join()


def test_an_end_is_carried_on_and_the_other_direction_stays_open(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.sendall(b"later")
    far.close()
    assert near.recv(5) == b"later"
    assert near.recv(1) == b""


def test_what_nobody_takes_any_more_is_let_go(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    far.close()
    near.sendall(MESSAGE * 32)  # more than the relay and the sockets hold
    near.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""
