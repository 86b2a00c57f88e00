"""Calls to the server: how long they may take, and what their errors become."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from lockstep.errors import translate

CALL_S = 30.0  # for a call that only asks or tells; the server answers stop, pause and resume after 10 s at the latest
SEND_S = 600.0  # for uploads and downloads
FOREVER_S = 1e8  # gRPC takes no None on every call


class Deadline:
    """A time limit over several calls; None is none."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds for the next call."""
        return FOREVER_S if self._end_s is None else max(self._end_s - time.monotonic(), 0.001)

    @property
    def is_over(self) -> bool:
        """Whether there is no time left."""
        return self._end_s is not None and time.monotonic() > self._end_s


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Raise Lockstep's exceptions in place of gRPC's."""
    try:
        yield
    except grpc.RpcError as error:
        raise translate(error, address) from None
