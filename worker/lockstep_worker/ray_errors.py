"""What Ray raises, in one line of words and without a traceback."""

import re

import ray

from lockstep_worker.errors import WorkerError

# Ray cannot tell a crash from the kernel's kill; its own, which comes before where it watches the memory, it can.
DIED = "its worker process has died: it crashed, or was killed, as the kernel does when memory runs out"


def in_words(error: BaseException) -> str:
    """Say why a task or an actor's call gave no value."""
    if isinstance(error, ray.exceptions.RayTaskError):
        if isinstance(error.cause, WorkerError):
            return str(error.cause)
        return f"{type(error.cause).__name__}: {_first_line(error.cause)}"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its machine ran out of memory"
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return DIED
    if isinstance(error, ray.exceptions.OwnerDiedError):
        return "the fleet that had it loaded is gone"
    if isinstance(error, ray.exceptions.ObjectLostError):
        return "its machine is gone, and it cannot be loaded again"
    because = re.search(r"The actor is dead because (.+?)\.?(\s[A-Z]|$)", str(error))
    if because is None:
        return _first_line(error) or type(error).__name__
    return DIED if because[1] == "its worker process has died" else because[1]


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
