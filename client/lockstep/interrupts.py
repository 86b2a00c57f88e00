"""Signals that are held back while something runs that they would break, and raised where the main thread waits.

A KeyboardInterrupt comes between any two instructions. Inside gRPC it leaves a call that no thread reads, or a lock
that is never given back, and closing the connection then waits for ever; between a job's submission and the `try` that
follows, it leaves the job.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
NUMBERS = (signal.SIGINT, signal.SIGTERM)
LOOK_S = 1.0  # a signal that the system has handed to another thread wakes nobody


class Held:
    """A handler that notes signals. Work is done in threads: the one that waits for it can leave at once."""

    def __init__(self) -> None:
        self._came = False
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()  # the one queue that a handler may put into
        self._threads: list[threading.Thread] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal."""
        self._came = True
        self._woken.put(None)

    def start(self, work: Callable[[], T]) -> "Future[T]":
        """Do work in a thread, which is not waited for when the process ends."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            self._woken.put(None)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()
        return future

    def wait(self, future: "Future[T]") -> T:
        """Return the result of what was started. Raises KeyboardInterrupt if there was a signal: the work goes on."""
        while not future.done():
            self.check()
            try:
                self._woken.get(timeout=LOOK_S)
            except queue.Empty:
                continue
        return future.result()

    def run(self, work: Callable[[], T]) -> T:
        """Do work in a thread and return its result; see wait."""
        return self.wait(self.start(work))

    def settle(self, timeout_s: float) -> None:
        """Wait until all that was started has ended, for some time."""
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a signal that has not been raised."""
        if self._came:
            self._came = False
            raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[Held]:
    """Hold back the signals that would raise KeyboardInterrupt; what still waits at the end is raised there.

    That is so whatever else the block raises. Inside of another one it is that one. Only the main thread has signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Held()
        return
    for handler in map(signal.getsignal, NUMBERS):
        if isinstance(handler, Held):
            yield handler
            return
    handler = Held()
    taken = [number for number in NUMBERS if signal.getsignal(number) is signal.default_int_handler]
    try:
        for number in taken:
            signal.signal(number, handler)
        yield handler
    finally:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)  # so that all are given back
        for number in taken:
            signal.signal(number, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        handler.check()
