"""Holds bytes back: a link whose other end is far away. Run as a process.

Every connection to the relay is carried on to the target; bytes go on in both directions a fixed time after they came.
"""

import argparse
import queue
import socket
import sys
import threading
import time

READ_BYTES = 1 << 18
MAX_HELD = 64  # reads; then the relay takes no more until some have gone on


def carry(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    """Carry bytes in one direction until its end, which is carried on, too."""
    held: queue.Queue[tuple[float, bytes]] = queue.Queue(MAX_HELD)
    sending = threading.Thread(target=_send_on, args=(held, target), daemon=True)
    sending.start()
    data = b"-"
    while data:
        try:
            data = source.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        held.put((time.monotonic() + delay_s, data))
    sending.join()


def _send_on(held: "queue.Queue[tuple[float, bytes]]", target: socket.socket) -> None:
    gone = False
    while True:
        due_s, data = held.get()
        time.sleep(max(due_s - time.monotonic(), 0.0))
        try:
            if data and not gone:
                target.sendall(data)
            elif not data:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            gone = True  # the other direction's end, too, is on its way
        if not data:
            return


def relay(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    """Carry one connection in both directions until both have ended."""
    with source, target:
        for end in (source, target):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=carry, args=(target, source, delay_s), daemon=True)
        back.start()
        carry(source, target, delay_s)
        back.join()


def serve(listener: socket.socket, address: tuple[str, int], delay_s: float) -> None:
    """Take connections until the process ends."""
    while True:
        try:
            source, _ = listener.accept()
        except OSError:
            return  # it was closed
        target = socket.create_connection(address)
        threading.Thread(target=relay, args=(source, target, delay_s), daemon=True).start()


def main() -> None:
    """Relay until the end of the input; print the port."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--delay-s", type=float, required=True)
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = (host, int(port))
        threading.Thread(target=serve, args=(listener, address, options.delay_s), daemon=True).start()
        print(listener.getsockname()[1], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
