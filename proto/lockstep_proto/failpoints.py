"""Named points at which a process can be told by its environment to die, stall or fail, so that tests can hit them all.

LOCKSTEP_FAILPOINTS holds rules, separated by ";": `NAME=ACTION` or `NAME=ACTION@N`, which acts at the N-th hit of the
point (default: the first) and not again. Actions:

    die       the process ends as by kill -9
    stop      the process stops as by SIGSTOP, heartbeat and all
    stall:S   the thread sleeps S seconds
    fail      OSError(EIO) is raised
    full      OSError(ENOSPC) is raised
    defect    RuntimeError is raised

Without the variable a hit is one comparison. Which points there are is in `POINTS`; a rule for another one is refused.
"""

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

VARIABLE = "LOCKSTEP_FAILPOINTS"

# Where each point is hit, by the house whose process hits it.
POINTS: dict[str, str] = {}

Handler = Callable[[str], None]


class FailpointError(ValueError):
    """A rule that cannot be read, or that names no point."""


def hit(point: str) -> None:
    """Do what the environment, or a handler of a test, wants done at this point; most often nothing."""
    if _handler is not None:
        _handler(point)


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Call `handler` with every point that is hit in this process, in place of what the environment says."""
    global _handler  # noqa: PLW0603  (one a process, as the environment is)
    before, _handler = _handler, handler
    try:
        yield
    finally:
        _handler = before


class Rules:
    """A handler that follows rules as the environment has them. Raises FailpointError."""

    def __init__(self, text: str) -> None:
        self._lock = threading.Lock()
        self._hits: dict[str, int] = {}
        self._rules: dict[str, tuple[int, Callable[[], None]]] = {}
        for rule in filter(None, (part.strip() for part in text.split(";"))):
            point, equals, action = rule.partition("=")
            if not equals or point not in POINTS:
                raise FailpointError(f"{VARIABLE}: {rule!r} names no point; there are {', '.join(sorted(POINTS))}")
            action, _, count = action.partition("@")
            self._rules[point] = (int(count or 1), _action(action, point))

    def __call__(self, point: str) -> None:
        """Count a hit, and act at the one that the rule names."""
        rule = self._rules.get(point)
        if rule is None:
            return
        with self._lock:
            self._hits[point] = hits = self._hits.get(point, 0) + 1
        if hits == rule[0]:
            rule[1]()


def _action(text: str, point: str) -> Callable[[], None]:
    kind, _, seconds = text.partition(":")

    def fail(error: Exception) -> Callable[[], None]:
        def act() -> None:
            raise error

        return act

    actions: dict[str, Callable[[], None]] = {
        "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "stall": lambda: time.sleep(float(seconds or "inf")),
        "fail": fail(OSError(errno.EIO, f"failpoint {point}")),
        "full": fail(OSError(errno.ENOSPC, f"failpoint {point}")),
        "defect": fail(RuntimeError(f"failpoint {point}")),
    }
    if kind not in actions:
        raise FailpointError(f"{VARIABLE}: {text!r} at {point} is no action; there are {', '.join(actions)}")
    return actions[kind]


_handler: Handler | None = Rules(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
