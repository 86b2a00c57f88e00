"""Named points at which a process can be told by its environment to die, stall or fail, so that tests can hit them all.

LOCKSTEP_FAILPOINTS holds rules, separated by ";": `NAME=ACTION`, which acts at the first hit of the point and not
again, `NAME=ACTION@N`, which acts at the N-th, or `NAME=ACTION@N+`, which acts at the N-th and at every later one.

    die       the process ends as by kill -9
    stop      the process stops as by SIGSTOP, heartbeat and all
    stall:S   the thread sleeps S seconds
    fail      OSError(EIO) is raised
    full      OSError(ENOSPC) is raised
    defect    RuntimeError is raised

Before it acts, a process says so in one line on stderr. A process that is started again has the same environment: with
LOCKSTEP_FAILPOINTS_TRACES naming a directory, a rule that acts leaves a file there, named after its point, and does not
act when that file is there already. So it acts once, in whichever process comes first, and a test can see that it did.

Without rules a hit is one comparison. Which points there are is in `POINTS`; a rule for another one is refused.
"""

import contextlib
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "LOCKSTEP_FAILPOINTS"
TRACES_VARIABLE = "LOCKSTEP_FAILPOINTS_TRACES"

# Where each point is hit, by the house whose process hits it.
POINTS: dict[str, str] = {
    "server.start.locked": "the state directory is held, nothing in it has been read",
    "server.start.ready": "ports are bound, no job has been taken up",
    "server.submit.received": "a good spec has come, nothing of the job is stored",
    "server.submit.stored": "a job is on disk, its client has had no answer",
    "server.upload.piece": "a piece of a file has come, and is about to be written",
    "server.upload.kept": "a file is whole and under its name, its client has had no answer",
    "server.job.begun": "a job has left the queue, which is not on disk yet",
    "server.job.attempt_stored": "the number of a new attempt is on disk, its run has not begun",
    "server.job.saving": "the training is over, nothing of its end is on disk",
    "server.job.concluded": "the end of a job is known, but not on disk",
    "server.job.deleted": "a job's rows are gone, its files are not",
    "server.job.resumed": "a paused job is in the queue again, which is not on disk yet",
    "server.checkpoint.begun": "a checkpoint is due, nothing is written",
    "server.checkpoint.written": "a checkpoint is in place, older ones have not been dropped",
    "server.models.begun": "no model is written",
    "server.models.written": "the models are in place, the end of the job is not on disk",
    "server.file.begun": "a checkpoint's or model's temporary file is open and empty",
    "server.file.half_written": "half of its content is in it",
    "server.file.written": "all of it is, but not synced",
    "server.file.synced": "it is synced, but not under its name",
    "server.file.renamed": "it has its name, its directory is not synced",
    "server.journal.flush": "rows are about to be handed to the database's thread",
    "server.store.written": "rows are in a transaction that is not committed",
    "server.store.committed": "they are committed, nobody knows yet",
    "server.exchange.hello": "a worker has said who it is",
    "server.exchange.read": "a chunk of a gradient has come, and is about to be taken in",
    "server.exchange.taken_in": "it was taken in, with all that followed from it",
    "server.exchange.write": "a message to a worker is about to be sent",
    "server.update.chunk": "a chunk's gradient is complete, nothing of it is applied",
    "server.step.done": "a version is whole, and its step is about to be recorded",
    "server.run.tick": "leases and deadlines are about to be looked at",
    "server.run.ended": "a training has ended, and its workers are about to be told",
    "server.fleet.heard": "a message of the fleet has come",
    "server.fleet.orders": "orders are about to be sent to the fleet",
    "server.halt.begun": "the server is to end in order, nothing of that is done",
    "server.halt.kept": "all jobs are where a later server takes them up, streams and ports are still open",
    "worker.dial": "the server is about to be dialled",
    "worker.hello": "the stream is open, nothing has come",
    "worker.welcome": "the job is known",
    "worker.read": "a message has come, and is about to be taken in",
    "worker.chunk": "a chunk of the parameters is about to be taken in",
    "worker.prepare": "the first layers of a step that is expected are about to be gone through",
    "worker.work": "shards are about to be computed",
    "worker.shard": "one shard is about to be computed",
    "worker.layer": "a band of a gradient is there, nothing of it is sent",
    "worker.send": "a chunk is about to be queued for sending",
    "worker.sent": "all chunks of a piece of work are queued",
    "worker.heartbeat": "a heartbeat is about to be queued",
    "worker.leaving": "the worker has said that it leaves",
    "worker.goodbye": "the server has said goodbye",
    "fleet.connected": "a stream to the server is open, nothing is told",
    "fleet.orders": "orders have come",
    "fleet.load": "a job's data are about to be loaded",
    "fleet.task": "a task on some machine is about to read shards",
    "fleet.loaded": "data are loaded, the server has not been told",
    "fleet.start": "a worker is about to be started",
    "fleet.started": "a worker has been asked for",
    "fleet.leave": "a worker is about to be asked to leave",
    "fleet.ended": "a worker has ended, nothing has followed from it",
    "fleet.look": "the cluster is about to be looked at",
    "fleet.tick": "deadlines are about to be looked at",
    "fleet.tell": "a message to the server is about to be queued",
}

Handler = Callable[[str], None]
_RULE = re.compile(r"(?P<point>[\w.]+)=(?P<kind>\w+)(:(?P<seconds>\d+(\.\d+)?))?(@(?P<first>[1-9]\d*)(?P<on>\+)?)?")


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


@dataclass
class _Rule:
    point: str
    action: str
    act: Callable[[], None]
    first: int  # the hit that it acts at
    goes_on: bool  # whether it acts at every later one, too
    num_hits: int = 0

    def counts(self) -> bool:
        """Count a hit. Return whether the rule acts at it."""
        self.num_hits += 1
        return self.num_hits == self.first or (self.goes_on and self.num_hits > self.first)


class Rules:
    """A handler that follows rules as the environment has them. Raises FailpointError."""

    def __init__(self, text: str, traces: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._traces = traces
        read = [_read(part.strip()) for part in text.split(";") if part.strip()]
        self._rules = {rule.point: rule for rule in read}
        if len(self._rules) != len(read):
            raise FailpointError(f"{VARIABLE}: {text!r} has two rules for one point")

    def __call__(self, point: str) -> None:
        """Count a hit, and act if its rule says so."""
        rule = self._rules.get(point)
        if rule is None:
            return
        with self._lock:
            acts = rule.counts() and (self._leave_trace(point) or rule.goes_on)
        if acts:
            os.write(2, f"failpoint {point}: {rule.action}\n".encode())
            rule.act()

    def _leave_trace(self, point: str) -> bool:
        """Return whether there was none, of this process or another."""
        if self._traces is None:
            return True
        try:
            os.close(os.open(self._traces / point, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True


def _read(text: str) -> _Rule:
    parts = _RULE.fullmatch(text)
    if parts is None:
        raise FailpointError(f"{VARIABLE}: {text!r} is no rule; write NAME=ACTION, NAME=ACTION@N or NAME=ACTION@N+")
    point, kind = parts["point"], parts["kind"]
    if point not in POINTS:
        raise FailpointError(f"{VARIABLE}: there is no point {point!r}; there are {', '.join(sorted(POINTS))}")
    if kind not in _ACTIONS:
        raise FailpointError(f"{VARIABLE}: {text!r} has no action; there are {', '.join(_ACTIONS)}")
    if (kind == "stall") != (parts["seconds"] is not None):
        raise FailpointError(f"{VARIABLE}: {text!r}: stall, and nothing else, takes seconds, as in stall:2.5")
    seconds = float(parts["seconds"] or 0)
    act = _ACTIONS[kind]
    return _Rule(point, kind, lambda: act(point, seconds), int(parts["first"] or 1), parts["on"] is not None)


def _die(point: str, seconds: float) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # another thread may be the one that takes the signal


def _stop(point: str, seconds: float) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _stall(point: str, seconds: float) -> None:
    time.sleep(seconds)


def _fail(point: str, seconds: float) -> None:
    raise OSError(errno.EIO, f"failpoint {point}")


def _full(point: str, seconds: float) -> None:
    raise OSError(errno.ENOSPC, f"failpoint {point}")


def _defect(point: str, seconds: float) -> None:
    raise RuntimeError(f"failpoint {point}")


_ACTIONS: dict[str, Callable[[str, float], None]] = {
    "die": _die,
    "stop": _stop,
    "stall": _stall,
    "fail": _fail,
    "full": _full,
    "defect": _defect,
}


def _of_environment() -> Handler | None:
    rules, traces = os.environ.get(VARIABLE), os.environ.get(TRACES_VARIABLE)
    return Rules(rules, Path(traces) if traces else None) if rules else None


_handler: Handler | None = _of_environment()
