"""Holds bytes back: a link whose other end is far away. Run as a process.

Every connection to the relay is carried on to the target; bytes go on in both directions a fixed time after they came.
"""

import argparse
import contextlib
import fcntl
import os
import queue
import select
import socket
import sys
import threading
import time

HELD_BYTES = 1 << 20  # in a direction of a connection; then the relay takes no more until some have gone on


def carry(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    """Carry bytes in one direction until its end, which is carried on, too. They stay in the kernel, in a pipe."""
    held = queue.SimpleQueue[tuple[float, int]]()
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, HELD_BYTES)
    sending = threading.Thread(target=_send_on, args=(held, out, target), daemon=True)
    sending.start()
    num_bytes = -1
    while num_bytes:
        select.select([source], [], [])  # the pipe is locked while something waits in a splice into it
        try:
            num_bytes = os.splice(source.fileno(), into, HELD_BYTES)
        except ConnectionError:
            num_bytes = 0
        held.put((time.monotonic() + delay_s, num_bytes))
    sending.join()
    os.close(out)
    os.close(into)


def _send_on(held: "queue.SimpleQueue[tuple[float, int]]", out: int, target: socket.socket) -> None:
    with open(os.devnull, "wb") as nowhere:
        end = target.fileno()
        while True:
            due_s, num_bytes = held.get()
            time.sleep(max(due_s - time.monotonic(), 0.0))
            if num_bytes == 0:
                with contextlib.suppress(OSError):
                    target.shutdown(socket.SHUT_WR)
                return
            while num_bytes:
                try:
                    num_bytes -= os.splice(out, end, num_bytes)
                except OSError:
                    end = nowhere.fileno()  # the other direction's end, too, is on its way


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
