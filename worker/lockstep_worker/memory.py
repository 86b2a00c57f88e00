"""Memory of a process that has done its work and waits for more."""

import ctypes
import gc


def give_back() -> None:
    """Give what is unused to the system: the launchers have malloc keep it, and what comes next may be small."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
