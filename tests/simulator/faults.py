"""What may happen to a cluster. A plan of faults is drawn from the seed before the run, and can be played in part.

A fault finds what it hits when its time comes, by numbers that were drawn with it; one that finds nothing counts as
none. Each returns in words what it did.
"""

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockstep_server.training import MAX_FAILURES
from tests.simulator.checks import MIN_STEPS
from tests.simulator.client import Client
from tests.simulator.network import Stream
from tests.simulator.worker import Worker

if TYPE_CHECKING:
    from tests.simulator.run import Simulation

# Points at which the server may die; it passes most of them in every run.
SERVER_POINTS = (
    "server.submit.stored",
    "server.job.begun",
    "server.job.attempt_stored",
    "server.job.saving",
    "server.job.concluded",
    "server.job.resumed",
    "server.checkpoint.begun",
    "server.checkpoint.written",
    "server.models.begun",
    "server.models.written",
    "server.file.begun",
    "server.file.half_written",
    "server.file.written",
    "server.file.synced",
    "server.file.renamed",
    "server.journal.flush",
    "server.store.written",
    "server.store.committed",
    "server.exchange.taken_in",
    "server.update.chunk",
    "server.step.done",
    "server.run.ended",
)


@dataclass(frozen=True)
class Fault:
    """Something that happens at a time. Its further numbers, in [0, 1), mean what its kind makes of them."""

    at_s: float
    kind: str
    who: float
    how: float
    much: float
    hard: bool

    @property
    def seconds(self) -> float:
        """How long it lasts: from 50 ms to 10 s, short ones as often as long ones."""
        return float(0.05 * 200.0**self.much)


def draw(seed: str, kinds: Sequence[str]) -> tuple[Fault, ...]:
    """Draw a plan. The first faults come while the shortest job still runs."""
    draws = random.Random(f"{seed}/faults")
    mean_s = 10 ** draws.uniform(-0.7, 0.3)
    weights = [WEIGHTS[kind] * draws.choice((0.2, 1.0, 1.0, 5.0)) for kind in kinds]  # every run has its own troubles
    at_s, plan = draws.uniform(0.1, 1.0), []
    for i in range(draws.randint(5, 25)):
        at_s += min(draws.expovariate(1.0 / mean_s), 0.35 if i < 4 else 30.0)
        (kind,) = draws.choices(kinds, weights)
        numbers = [draws.randrange(10_000) / 10_000 for _ in range(3)]
        plan.append(Fault(round(at_s, 4), kind, *numbers, hard=draws.random() < 0.5))
    return tuple(plan)


# Workers


def kill_worker(run: "Simulation", fault: Fault) -> str:
    worker = _worker(run, fault)
    if worker is None:
        return ""
    run.network.kill(worker.process, silent=fault.hard)
    return f"worker {worker.process.name} is killed{', with its machine' if fault.hard else ''}"


def kill_worker_at_event(run: "Simulation", fault: Fault) -> str:
    worker = _worker(run, fault)
    if worker is None:
        return ""
    num_events = int(fault.how * 40)
    worker.process.die_at_event = worker.process.num_events + num_events
    return f"worker {worker.process.name} dies after {num_events} more events"


def stop_worker(run: "Simulation", fault: Fault) -> str:
    worker = _worker(run, fault)
    if worker is None or worker.process.stopped:
        return ""
    run.stop(worker.process, fault.seconds)
    return f"worker {worker.process.name} stands still for {fault.seconds:.2f} s"


def slow_worker(run: "Simulation", fault: Fault) -> str:
    worker = _worker(run, fault)
    if worker is None:
        return ""
    worker.slowness = 2 + 18 * fault.how
    run.loop.root.later(fault.seconds * 2, worker.back_to_speed)
    return f"worker {worker.process.name} is {worker.slowness:.1f} times as slow for {fault.seconds * 2:.2f} s"


def resize(run: "Simulation", fault: Fault) -> str:
    slots = int(fault.how * 5)
    before = run.plan.worker_slots
    if slots == before or run.fleet.worker_slots != before:
        return ""
    run.fleet.resize(slots)
    run.loop.root.later(fault.seconds, run.fleet.resize, before)
    return f"the cluster has room for {slots} workers, not {before}, for {fault.seconds:.2f} s"


def corrupt(run: "Simulation", fault: Fault) -> str:
    worker = _worker(run, fault)
    if worker is None:
        return ""
    worker.wrong_bits.append(int(fault.how * 64) + 64 * run.num_corrupt)  # no two agree on what is wrong
    run.num_corrupt += 1
    return f"worker {worker.process.name} sends a wrong bit"


def fail_worker(run: "Simulation", fault: Fault) -> str:
    worker = _worker(run, fault)
    if worker is None or worker.fails or run.num_failures + 1 == MAX_FAILURES:  # so many at one step end the job
        return ""
    worker.fails = True
    run.num_failures += 1
    return f"worker {worker.process.name} runs out of memory"


# The network


def cut(run: "Simulation", fault: Fault) -> str:
    stream = _stream(run, fault)
    if stream is None:
        return ""
    stream.cut(fault.how, fault.much, silent=fault.hard)
    return f"{_name(stream)} is cut{', and falls silent' if fault.hard else ''}"


def block(run: "Simulation", fault: Fault) -> str:
    stream = _stream(run, fault)
    if stream is None:
        return ""
    sender, receiver = (stream.client, stream.server) if fault.hard else (stream.server, stream.client)
    seconds = fault.seconds * (1 + 2 * fault.how)
    run.network.block(sender, receiver, seconds)
    return f"nothing comes through from {sender.name} to {receiver.name} for {seconds:.2f} s"


def slow_stream(run: "Simulation", fault: Fault) -> str:
    stream = _stream(run, fault)
    if stream is None:
        return ""
    stream.up.is_slow = stream.down.is_slow = True
    return f"{_name(stream)} is a hundred times as slow"


def copy_messages(run: "Simulation", fault: Fault) -> str:
    worker = _worker(run, fault)
    if worker is None or worker.stream is None:
        return ""
    worker.num_copies += 1 + int(fault.how * 20)
    return f"worker {worker.process.name} sends {worker.num_copies} chunks twice"


# The server


def kill_server(run: "Simulation", fault: Fault) -> str:
    if not run.server.up:
        return ""
    run.server.kill(machine=fault.hard, down_s=fault.seconds)
    return f"the server is killed{', with its machine' if fault.hard else ''}, and back after {fault.seconds:.2f} s"


def kill_server_at_event(run: "Simulation", fault: Fault) -> str:
    if not run.server.up or run.server.process.die_at_event is not None:
        return ""
    num_events = int(fault.how**2 * 400)
    run.server.die_at_event(num_events, machine=fault.hard, down_s=fault.seconds)
    return f"the server dies after {num_events} more events{', with its machine' if fault.hard else ''}"


def kill_server_at_point(run: "Simulation", fault: Fault) -> str:
    if not run.server.up or run.point is not None:
        return ""
    run.point = SERVER_POINTS[int(fault.how * len(SERVER_POINTS))]
    run.at_point = fault
    return f"the server dies when it next comes to {run.point}{', with its machine' if fault.hard else ''}"


def halt_server(run: "Simulation", fault: Fault) -> str:
    if not run.server.up:
        return ""
    run.server.halt(down_s=fault.seconds)
    return f"the server is told to end, and back {fault.seconds:.2f} s later"


def stop_server(run: "Simulation", fault: Fault) -> str:
    if not run.server.up or run.server.process.stopped:
        return ""
    run.stop(run.server.process, fault.seconds)
    return f"the server stands still for {fault.seconds:.2f} s"


def fail_disk(run: "Simulation", fault: Fault) -> str:
    if run.disk.failing is not None:
        return ""
    run.disk.failing = errno.ENOSPC if fault.hard else errno.EIO
    run.loop.root.later(fault.seconds, run.disk.recover)
    return f"the disk {'is full' if fault.hard else 'fails'} for {fault.seconds:.2f} s"


def damage_checkpoint(run: "Simulation", fault: Fault) -> str:
    if not run.server.up or not run.disk.damage_newest():
        return ""
    run.server.kill(machine=False, down_s=fault.seconds)
    return "the newest checkpoint is damaged, and the server killed"


def slow_disk(run: "Simulation", fault: Fault) -> str:
    run.disk_delay_s = fault.seconds / 5
    run.loop.root.later(fault.seconds, run.disk_is_fast)
    return f"the disk takes {run.disk_delay_s:.2f} s longer, for {fault.seconds:.2f} s"


# Fleet and people


def kill_fleet(run: "Simulation", fault: Fault) -> str:
    if not run.fleet.process.alive:
        return ""
    run.fleet.kill(machine=fault.hard, down_s=fault.seconds)
    return f"the fleet is killed{', with its machines' if fault.hard else ''}, and back after {fault.seconds:.2f} s"


def stop_fleet(run: "Simulation", fault: Fault) -> str:
    if not run.fleet.process.alive or run.fleet.process.stopped:
        return ""
    run.stop(run.fleet.process, fault.seconds)
    return f"the fleet stands still for {fault.seconds:.2f} s"


def pause(run: "Simulation", fault: Fault) -> str:
    client = _client(run, fault)
    return f"the job of {client.name} is paused for {fault.seconds:.2f} s" if client.pause(fault.seconds) else ""


def stop_job(run: "Simulation", fault: Fault) -> str:
    client = _client(run, fault)
    enough = len(run.server.steps) >= MIN_STEPS  # else the run would show nothing
    return f"the job of {client.name} is stopped" if enough and client.stop() else ""


KINDS: dict[str, Callable[["Simulation", Fault], str]] = {
    function.__name__: function
    for function in (
        kill_worker,
        kill_worker_at_event,
        stop_worker,
        slow_worker,
        resize,
        cut,
        block,
        slow_stream,
        copy_messages,
        corrupt,
        fail_worker,
        kill_server,
        kill_server_at_event,
        kill_server_at_point,
        halt_server,
        stop_server,
        fail_disk,
        damage_checkpoint,
        slow_disk,
        kill_fleet,
        stop_fleet,
        pause,
        stop_job,
    )
}
WEIGHTS = dict.fromkeys(KINDS, 1.0) | {"kill_worker": 3.0, "cut": 3.0, "stop_job": 0.05, "resize": 0.5}


def kinds(*, audited: bool) -> list[str]:
    """What may happen to a job; where every node is computed twice, a worker may send what is wrong.

    But not what it has sent already, which could pass for its second computation of a node.
    """
    return [kind for kind in KINDS if kind != ("copy_messages" if audited else "corrupt")]


def _worker(run: "Simulation", fault: Fault) -> Worker | None:
    workers = run.fleet.workers
    return workers[int(fault.who * len(workers))] if workers else None


def _client(run: "Simulation", fault: Fault) -> Client:
    return run.clients[int(fault.who * len(run.clients))]


def _stream(run: "Simulation", fault: Fault) -> Stream | None:
    streams = [stream for stream in run.network.streams if stream.open]
    return streams[int(fault.who * len(streams))] if streams else None


def _name(stream: Stream) -> str:
    return f"{stream.method} of {stream.client.name}"
