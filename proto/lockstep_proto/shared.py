"""Memory of the server that a worker on the same machine has, too: what lies in it does not go through sockets.

The server makes files in memory, and its welcome says as which descriptors it has them open. A worker of the same user
finds them under /proc, or does not: then all goes through the stream. What lies in them is looked at when a message on
the stream refers to it, so the order of the stream is that of all messages.

- The server writes the parameters of a job to one, which workers cannot write: a head, and behind it rooms. A version
  lies in a room as one flat vector, and a worker computes from it there. The room serves no other version until all
  workers that it was lent to have let go of it.
- A worker writes to one of its own: a head, which says how many of the chunks it was lent in each room it has let go
  of, and which of the slots behind it are taken. It takes a slot; the server, which knows when a value has been summed,
  gives it back.

When a call has ended, its worker may still read what the server writes anew. Nothing comes of that: what it has then is
forgotten with the call, and what it would send has no way.
"""

import hashlib
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

LEAST_BYTES = 1 << 17  # to copy a smaller message through the stream costs less than to refer to it
# Of versions: present, next, best, those being kept, and older ones that some worker still has. Where none is free, a
# version is made elsewhere and goes through sockets. A page takes memory when it is first written to.
NUM_ROOMS = 8
TOKEN_BYTES = 16  # at the beginning of either file
HEAD_BYTES = mmap.PAGESIZE
STATES = 128  # where the slots' states begin in the head, a byte each
MAX_SLOTS = HEAD_BYTES - STATES
FREE, TAKEN = b"\x00", b"\x01"
_COUNTERS = 64


def machine() -> str:
    """Return what processes that can share memory have in common; empty where that is not possible."""
    if not hasattr(os, "memfd_create"):
        return ""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text()
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{started} {processes} {os.geteuid()}".encode()).hexdigest()


def num_let_go(slots: mmap.mmap) -> npt.NDArray[np.uint64]:
    """Return where the worker's counts stand, one of each room: of the chunks lent there, those it has let go of."""
    return np.frombuffer(slots, np.uint64, NUM_ROOMS, _COUNTERS)
