"""What Ray raises, in one line of words and without a traceback."""

import re

import ray

from lockstep_worker.errors import WorkerError


def in_words(error: BaseException) -> str:
    """Say why a task or an actor's call gave no value."""
    if isinstance(error, ray.exceptions.RayTaskError):
        if isinstance(error.cause, WorkerError):
            return str(error.cause)
        return f"{type(error.cause).__name__}: {_first_line(error.cause)}"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its machine ran out of memory"
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return "its worker process has died"
    because = re.search(r"The actor is dead because (.+?)\.?(\s[A-Z]|$)", str(error))
    return because[1] if because is not None else _first_line(error) or type(error).__name__


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
