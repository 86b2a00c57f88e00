"""One simulated run: a cluster, a job, a plan of faults, and what came of it."""

import asyncio
import gc
import logging
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstep_proto import failpoints
from lockstep_server import chunks
from tests.simulator import checks, faults, jobs
from tests.simulator.client import Client
from tests.simulator.disk import Disk, watched
from tests.simulator.faults import Fault
from tests.simulator.fleet import FleetHost
from tests.simulator.jobs import Case
from tests.simulator.loop import Crash, Loop, Process, RanDryError, SpinsError, TooLateError, virtual
from tests.simulator.network import Network
from tests.simulator.server import ServerHost

CHUNK_BYTES = 128  # so that the tiny networks have several chunks, and their first layer is whole before the last
CALM_S = 300.0  # after the last fault has passed, the job ends within this
AGAIN_S = 0.3  # a fault that finds nothing to hit tries again
FAULT_S = 60.0  # no fault lasts longer


@dataclass(frozen=True)
class Plan:
    """All that a run is made of."""

    seed: int
    case: Case
    options: dict[str, Any]  # of its spec, without influence on what it computes
    worker_slots: int
    cpus_per_worker: int
    fork: bool  # whether a second job starts from the first
    lease_s: float
    checkpoint_s: float
    max_unsummed_bytes: int
    faults: tuple[Fault, ...]

    def with_faults(self, chosen: Sequence[Fault]) -> "Plan":
        """The same run with other faults."""
        return replace(self, faults=tuple(chosen))


@dataclass(frozen=True)
class Report:
    """What came of a run. `void` says why it shows nothing, if so: such a run has failed, too."""

    plan: Plan
    problems: list[str]
    void: list[str]
    story: list[str]
    num_faults: int
    num_steps: int
    num_events: int
    virtual_s: float
    trace: int

    @property
    def failed(self) -> bool:
        """Whether it is not green."""
        return bool(self.problems or self.void)


def plan(seed: int) -> Plan:
    """Draw the run of a seed."""
    draws = random.Random(f"{seed}/plan")
    options = {
        "audit": draws.choice((0.0, 0.0, 0.3, 1.0)),  # what is computed once is believed
        "checkpoints": draws.choice(({}, {"every_steps": draws.randint(1, 10)})),
    }
    return Plan(
        seed=seed,
        case=draws.choice(jobs.CASES),
        options=options,
        worker_slots=draws.choice((1, 2, 3, 3, 4)),
        cpus_per_worker=draws.choice((1, 1, 2)),
        fork=draws.random() < 0.25,
        lease_s=draws.choice((0.5, 2.0, 2.0)),
        checkpoint_s=draws.choice((0.5, 2.0, 30.0)),
        max_unsummed_bytes=draws.choice((1, 1 << 30)),
        faults=faults.draw(str(seed), faults.kinds(audited=options["audit"] == 1.0)),
    )


def run(what: Plan) -> Report:
    """Play a run to its end."""
    root = Path(tempfile.mkdtemp(prefix="simulator-", dir=_fast_directory()))
    gc.disable()  # else what is finalised when depends on what ran before
    try:
        return Simulation(what, root).play()
    finally:
        shutil.rmtree(root)
        gc.enable()


class Simulation:
    """A cluster in one thread."""

    def __init__(self, what: Plan, root: Path) -> None:
        seed = str(what.seed)
        self.plan = what
        self.loop = Loop(seed, limit_s=max([0.0, *(fault.at_s for fault in what.faults)]) + FAULT_S + CALM_S)
        self.loop.thread_s = self._thread_s
        self.network = Network(self.loop, seed)
        self.network.without_keepalive = {"Exchange"} if what.seed % 2 else set()
        self.disk = Disk(root, seed)
        self.logged: list[str] = []
        self.story: list[str] = []
        self.num_faults = 0
        self.num_corrupt = 0  # of them, such as let a worker send a wrong bit
        self.num_failures = 0  # of them, such as let a worker's computation fail
        self.disk_delay_s = 0.0
        self.point: str | None = None  # at which the server is to die
        self.at_point: Fault | None = None

    def play(self) -> Report:
        """Run to the end of the job, or to where it cannot end any more."""
        with virtual(self.loop), watched(self.disk), failpoints.handled_by(self._hit), self._log(), _small_chunks():
            found = self._play()
            self.loop.finish()
            self.server.close()
        return Report(
            plan=self.plan,
            problems=found,
            void=checks.void(self) if self.plan.faults else [],
            story=self.story,
            num_faults=self.num_faults,
            num_steps=len(self.server.steps),
            num_events=self.loop.num_events,
            virtual_s=self.loop.time(),
            trace=self.loop.trace,
        )

    def _play(self) -> list[str]:
        what = self.plan
        self.server = ServerHost(
            self.loop,
            self.network,
            self.disk,
            lease_s=what.lease_s,
            checkpoint_s=what.checkpoint_s,
            max_unsummed_bytes=what.max_unsummed_bytes,
        )
        self.fleet = FleetHost(
            self.loop,
            self.network,
            str(what.seed),
            worker_slots=what.worker_slots,
            cpus_per_worker=what.cpus_per_worker,
        )
        self.clients = [self._client("client")]
        if what.fork:
            self.clients.append(self._client("forker", source=self.clients[0]))
        all_done = asyncio.gather(*(client.done for client in self.clients))
        for fault in what.faults:
            self.loop.root.later(fault.at_s, self._happens, fault)
        try:
            self.loop.run_until_complete(all_done)
        except (TooLateError, RanDryError, SpinsError) as error:
            jobs_ = [client.job for client in self.clients if not client.done.done()]
            now = ", ".join("no job" if job is None else f"in state {job.state}: {job.phase}" for job in jobs_)
            stuck = f"a job has not ended ({error!r} at {self.loop.time():.1f} s): {now}"
            return [stuck, *self.loop.problems, *self.loop.unseen_errors(), *self.logged]
        except Exception as error:
            return [f"the client failed: {error!r}", *self.loop.problems, *self.loop.unseen_errors(), *self.logged]
        return checks.problems(self)

    def _client(self, name: str, source: Client | None = None) -> Client:
        spec = jobs.spec_of(self.plan.case, **self.plan.options)
        return Client(self.loop, self.network, name, spec, source)

    # What faults do

    def stop(self, process: Process, seconds: float) -> None:
        """Let a process stand still for a while."""
        process.stop()
        self.network.stopped(process, seconds)
        self.loop.root.later(seconds, process.go_on)

    def disk_is_fast(self) -> None:
        """The disk is as fast as it was."""
        self.disk_delay_s = 0.0

    def _happens(self, fault: Fault) -> None:
        if all(client.done.done() for client in self.clients):
            return
        words = faults.KINDS[fault.kind](self, fault)
        if words:
            self.num_faults += 1
            self.tell(words)
        else:  # it finds nothing to hit now
            self.loop.root.later(AGAIN_S, self._happens, fault)

    def tell(self, words: str) -> None:
        """Add to the story."""
        self.story.append(f"{self.loop.time():9.3f} s  {words}")

    # What happens in the product

    def _hit(self, point: str) -> None:
        process = self.loop.process()
        if process is not self.server.process or not process.alive:
            return
        if point == self.point:
            assert self.at_point is not None
            fault, self.point, self.at_point = self.at_point, None, None
            self.tell(f"the server is killed at {point}, and back after {fault.seconds:.2f} s")
            in_commit = point == "server.store.committed"
            self.server.kill(machine=fault.hard, down_s=fault.seconds, in_commit=in_commit)
            raise Crash
        self.disk.hit(point)

    def _thread_s(self, process: Process) -> float:
        return self.disk_delay_s if process is self.server.process else 0.0

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Take note of what is logged as an error, which a run has none of."""
        handler = _Handler(self)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, run: Simulation) -> None:
        super().__init__(logging.ERROR)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if self._run.loop.process().alive and not isinstance(error, Crash):
            self._run.logged.append(f"logged: {record.getMessage()}" + (f": {error!r}" if error else ""))


@contextmanager
def _small_chunks() -> Iterator[None]:
    before, chunks.CHUNK_BYTES = chunks.CHUNK_BYTES, CHUNK_BYTES
    try:
        yield
    finally:
        chunks.CHUNK_BYTES = before


def _fast_directory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
