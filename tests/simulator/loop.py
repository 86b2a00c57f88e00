"""An event loop with virtual time that runs several processes in one thread, in an order that a seed decides.

Nothing waits: when no callback is ready, time jumps to the next timer. Callbacks of one process run in the order in
which they became ready, as asyncio promises; between processes the seed chooses. A process is told by the context that
its callbacks carry, so it can be stopped, and killed between any two of them: what is left of it never runs again, not
even a `finally`.
"""

import asyncio
import contextlib
import contextvars
import heapq
import random
import secrets
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

EPOCH_S = 1_700_000_000.0  # what the processes take for the time of day at virtual time 0
MAX_EVENTS_AT_ONCE = 20_000
_PROCESS: "contextvars.ContextVar[Process]" = contextvars.ContextVar("process")


class Crash(BaseException):
    """Unwinds the stack of a process that died in the middle of a callback."""


class RanDryError(Exception):
    """Nothing is under way and no timer runs: whoever waits now waits for ever."""


class SpinsError(Exception):
    """A process is busy for ever: time stands still."""


class TooLateError(Exception):
    """The time that a run may take is over."""


class Process:
    """What can be stopped or killed at once."""

    def __init__(self, loop: "Loop", name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.died: list[Callable[[], None]] = []  # called at its death, by nobody of its own
        self.num_events = 0
        self.number = loop.num_processes = loop.num_processes + 1
        self.die_at_event: int | None = None
        self.die: Callable[[], None] = self.kill
        self.ready: deque[asyncio.Handle] = deque()
        self._loop = loop
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def __repr__(self) -> str:
        return f"<process {self.name}>"

    def start(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Run a coroutine as a task of this process."""
        return self._loop.create_task(coroutine, context=self.context)

    def soon(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call in this process."""
        self._loop.call_soon(call, *arguments, context=self.context)

    def later(self, delay_s: float, call: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """Call in this process after a while."""
        return self._loop.call_later(delay_s, call, *arguments, context=self.context)

    def kill(self) -> None:
        """End as by SIGKILL."""
        if self.alive:
            self.alive = False
            self.ready.clear()
            self._loop.left(self)
            for tell in self.died:
                tell()

    def stop(self) -> None:
        """Stand still as by SIGSTOP."""
        self.stopped = True
        self._loop.left(self)

    def go_on(self) -> None:
        """Go on as by SIGCONT, with all that has become ready meanwhile."""
        self.stopped = False
        self._loop.may_run(self)


class Loop(asyncio.BaseEventLoop):
    """The loop. `limit_s` bounds virtual time; `problems` has what went wrong in callbacks and tasks."""

    def __init__(self, seed: str, *, limit_s: float) -> None:
        super().__init__()
        self.random = random.Random(f"{seed}/loop")
        self.limit_s = limit_s
        self.problems: list[str] = []
        self.num_events = 0
        self.num_processes = 0
        self.thread_s: Callable[[Process], float] = lambda process: 0.0  # further delay of a call in a thread
        self.trace = 0  # a number that two runs share when the same callbacks ran at the same times
        self._now = 0.0
        self._num_events_before = 0  # this moment
        self._runnable: list[Process] = []
        self._thread_free_s: dict[int, float] = {}
        self._finished = False
        self._all_tasks: list[tuple[asyncio.Task[Any], Process]] = []
        self.root = Process(self, "simulator")
        self.set_exception_handler(self._problem)

    def time(self) -> float:
        """Virtual time in seconds."""
        return self._now

    def process(self) -> Process:
        """The process whose callback runs."""
        return _PROCESS.get(self.root)

    # What asyncio asks of a loop.

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        while not self._runnable:
            self._advance()
        runnable = self._runnable
        process = runnable[int(self.random.random() * len(runnable))] if len(runnable) > 1 else runnable[0]
        handle = process.ready.popleft()
        if not process.ready:
            runnable.remove(process)
        if handle._cancelled:
            return
        if process.num_events == process.die_at_event:
            process.die()
            return
        process.num_events += 1
        self.num_events += 1
        if self.num_events - self._num_events_before > MAX_EVENTS_AT_ONCE:
            raise SpinsError(f"{process.name}: {handle!r}")
        self.trace = hash((self.trace, self._now, process.number))
        handle._run()

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        """Make a task. It is kept, so that one of a dead process is not finalised while others run."""
        task = super().create_task(coro, **options)
        context = options.get("context")
        self._all_tasks.append((task, self.process() if context is None else context.get(_PROCESS)))
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """Call a function at a random later time; the calls of one executor of its own follow each other."""
        future = self.create_future()
        process = self.process()
        begins_s = self._now + self.random.expovariate(2000.0) + self.thread_s(process)
        if executor is not None:
            begins_s = max(begins_s, self._thread_free_s.get(id(executor), 0.0))
        ends_s = begins_s + self.random.expovariate(500.0)
        if executor is not None:
            self._thread_free_s[id(executor)] = ends_s
        self.call_at(begins_s, self._in_thread, future, func, args, ends_s)
        return future

    def _in_thread(self, future: "asyncio.Future[Any]", func: Callable[..., Any], args: Any, ends_s: float) -> None:
        if future.cancelled() and self.random.random() < 0.5:
            return  # else a thread had begun already
        result, error = None, None
        try:
            result = func(*args)
        except Crash:
            return
        except Exception as caught:
            error = caught
        self.call_at(max(ends_s, self._now), _settle, future, result, error)

    # Processes.

    def left(self, process: Process) -> None:
        """A process does not run now."""
        if process in self._runnable:
            self._runnable.remove(process)

    def may_run(self, process: Process) -> None:
        """A process runs if it has something to run."""
        if process.ready and process.alive and not process.stopped and process not in self._runnable:
            self._runnable.append(process)

    def unseen_errors(self) -> list[str]:
        """What ended tasks of living processes, and nobody looked at."""
        found = []
        for task, process in self._all_tasks:
            if task.done() and task._log_traceback and process.alive:  # type: ignore[attr-defined]
                found.append(f"a task of {process.name} ended by {task.exception()!r}")
        return found

    def finish(self) -> None:
        """Close what is left, without effects and without complaints."""
        self._finished = True
        generators = list(self._asyncgens)  # type: ignore[attr-defined]
        for task, _ in self._all_tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _close(task.get_coro())
            else:
                task._log_traceback = False  # type: ignore[attr-defined]
        with warnings.catch_warnings():  # of files that the dead had open
            warnings.simplefilter("ignore", ResourceWarning)
            while generators:
                with contextlib.suppress(BaseException):
                    generators.pop().aclose().send(None)
        self.close()

    def _check_closed(self) -> None:
        pass  # what is closed at the end may still call, without effect

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        if not self._finished:
            super()._asyncgen_finalizer_hook(agen)  # type: ignore[misc]

    def _advance(self) -> None:
        while True:
            if not self._scheduled:
                raise RanDryError
            due = heapq.heappop(self._scheduled)
            due._scheduled = False
            if due._cancelled:
                self._timer_cancelled_count -= 1
                continue
            if due._when > self._now:
                self._now = due._when
                self._num_events_before = self.num_events
            if self._now > self.limit_s:
                raise TooLateError
            self._enqueue(due)
            return

    def _enqueue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(_PROCESS, self.root)
        if process.alive and not self._finished:
            process.ready.append(handle)
            self.may_run(process)

    def _problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self._finished and not isinstance(error, Crash) and self.process().alive:
            self.problems.append(f"{context['message']}: {error!r}")


def _close(coroutine: Any) -> None:
    while True:
        try:
            coroutine.close()
        except RuntimeError:  # it awaits something in a `finally`
            continue
        except BaseException:
            return
        return


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


@contextlib.contextmanager
def virtual(loop: Loop) -> Iterator[None]:
    """Let all that asks for the time, or for a secret, have it from the loop and its seed."""
    draw = random.Random(loop.random.random())
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (time, "time", lambda: EPOCH_S + loop.time()),
        (time, "monotonic", loop.time),
        (time, "perf_counter", loop.time),
        (secrets, "token_hex", lambda num_bytes=32: draw.randbytes(num_bytes).hex()),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    for module, name, function in replaced:
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name, _), function in zip(replaced, before, strict=True):
            setattr(module, name, function)
