"""The fleet: the product's machine, with a Ray cluster that is only pretended."""

import asyncio
import random

from lockstep_proto.channels import FLEET_HEARTBEAT_S
from lockstep_proto.v1 import job_pb2, training_pb2
from lockstep_worker.fleet import Fleet
from lockstep_worker.fleet_effects import (
    AskToLeave,
    Effect,
    ForgetData,
    KillWorker,
    LoadData,
    StartSpare,
    StartWorker,
    Tell,
)
from lockstep_worker.fleet_link import REDIAL_S
from tests.simulator import jobs
from tests.simulator.loop import Loop, Process
from tests.simulator.network import Code, Failure, Network, Stream
from tests.simulator.rpc import answers
from tests.simulator.server import ADDRESS
from tests.simulator.worker import Worker

TICK_S = 0.2  # of the product's driver
RESTART_S = 1.0  # compose starts a container again that has ended


class FleetHost:
    """Starts the fleet, and starts it again. Its workers live and die with it."""

    def __init__(self, loop: Loop, network: Network, seed: str, *, worker_slots: int, cpus_per_worker: int) -> None:
        self.worker_slots = worker_slots
        self.cpus_per_worker = cpus_per_worker
        self.num_lives = 0
        self._loop = loop
        self._network = network
        self._seed = seed
        self.start()

    def start(self) -> None:
        """Begin a life."""
        self.num_lives += 1
        self.process = Process(self._loop, f"fleet#{self.num_lives}")
        self.driver = Driver(self._loop, self._network, self.process, self, f"{self._seed}/{self.num_lives}")

    @property
    def workers(self) -> list[Worker]:
        """The workers that live and are no spares."""
        return [worker for worker in self.driver.workers.values() if worker.process.alive and not worker.over]

    def kill(self, *, machine: bool, down_s: float) -> None:
        """End the fleet and all workers at once, and begin again after a while."""
        if self.process.alive:
            for worker in self.driver.workers.values():
                self._network.kill(worker.process, silent=machine)
            self._network.kill(self.process, silent=machine)
            self._loop.root.later(down_s, self.start)

    def resize(self, worker_slots: int) -> None:
        """Machines join or leave the cluster; workers and spares that have no room die with theirs."""
        self.worker_slots = worker_slots
        living = [worker for worker in self.driver.workers.values() if worker.process.alive]
        for worker in living[worker_slots:]:
            self._network.kill(worker.process, silent=True)


class Driver:
    """One life of the fleet."""

    def __init__(self, loop: Loop, network: Network, process: Process, host: FleetHost, seed: str) -> None:
        self.workers: dict[str, Worker] = {}  # spares among them
        self._loop = loop
        self._network = network
        self._process = process
        self._host = host
        self._random = random.Random(f"{seed}/fleet")
        self._fleet = Fleet(f"f{host.num_lives}")
        self._stream: Stream | None = None
        self._loading: dict[str, asyncio.TimerHandle] = {}
        process.start(self._link())
        process.start(self._tick())

    async def _tick(self) -> None:
        while True:
            self._look()
            self._carry(self._fleet.tick(self._loop.time()))
            await asyncio.sleep(TICK_S)

    def _look(self) -> None:
        resources = training_pb2.FleetResources(
            worker_slots=self._host.worker_slots, cpus_per_worker=self._host.cpus_per_worker, nodes=1
        )
        self._carry(self._fleet.resources_changed(resources, self._loop.time()))

    # The connection to the server, as the product's link keeps it.

    async def _link(self) -> None:
        num_failed = 0
        while True:
            stream = self._stream = self._network.call(self._process, ADDRESS, "Attach")
            beating = self._process.start(self._beat(stream))
            self._carry(self._fleet.connected(self._loop.time()))
            try:
                async for message in answers(stream):
                    num_failed = 0
                    orders = training_pb2.FleetOrders.FromString(message)
                    self._carry(self._fleet.ordered(orders.jobs, self._loop.time()))
            except Failure as failure:
                if failure.code() is Code.ABORTED:  # the server took an earlier stream of its own for another fleet
                    self._host.kill(machine=False, down_s=RESTART_S)
                    return
            stream.cancel()
            self._stream = None
            self._fleet.disconnected()
            beating.cancel()
            await asyncio.sleep(REDIAL_S[min(num_failed, len(REDIAL_S) - 1)])
            num_failed += 1

    async def _beat(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(FLEET_HEARTBEAT_S)
            stream.up.send(training_pb2.FleetMessage(heartbeat=training_pb2.Heartbeat()).SerializeToString())

    # Effects

    def _carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case LoadData(job_id, spec):
                    loading_s = self._random.uniform(0.02, 0.5)
                    self._loading[job_id] = self._process.later(loading_s, self._loaded, job_id, spec)
                case ForgetData(job_id):
                    self._loading.pop(job_id).cancel()
                case StartWorker(job_id, worker_id, spare):
                    worker = self._make(job_id, worker_id, self.workers.pop(spare) if spare is not None else None)
                    worker.process.later(self._random.uniform(0.05, 1.0), worker.begin)
                case StartSpare(name):
                    self._make("", name, None).over = True
                case AskToLeave(worker_id):
                    worker = self.workers[worker_id]
                    worker.process.later(self._random.uniform(0.0, 0.05), worker.leave)
                case KillWorker(worker_id):
                    worker = self.workers.pop(worker_id, None)
                    if worker is not None:
                        self._network.kill(worker.process, silent=False)
                case Tell(message):
                    if self._stream is not None:
                        self._stream.up.send(message.SerializeToString())

    def _loaded(self, job_id: str, spec: job_pb2.JobSpec) -> None:
        loaded = training_pb2.DataLoaded(
            job_id=job_id,
            num_rows=len(jobs.X),
            num_validation_rows=len(jobs.VALIDATION_X) if spec.HasField("validation") else 0,
            data_fingerprint="training",
            validation_fingerprint="validation" if spec.HasField("validation") else "",
        )
        self._carry(self._fleet.data_loaded(loaded, self._loop.time()))

    def _make(self, job_id: str, worker_id: str, spare: Worker | None) -> Worker:
        worker = self.workers[worker_id] = Worker(
            self._loop,
            self._network,
            job_id,
            worker_id,
            num_cpus=self._host.cpus_per_worker,
            joined=lambda: self._joined(worker_id),
            ended=lambda error, reusable: self._ended(worker_id, error, reusable),
            spare=spare,
        )
        worker.process.died.append(lambda: self._died(worker_id))
        return worker

    def _died(self, worker_id: str) -> None:
        worker = self.workers.get(worker_id)
        if worker is None:  # it was a spare, and is another worker now
            return
        if worker.over:
            self._process.later(0.0, lambda: self._carry(self._fleet.spare_ended(worker_id)))
        else:
            self._ended(worker_id, "its process died", False)

    def _joined(self, worker_id: str) -> None:
        self._process.soon(self._fleet.worker_joined, worker_id)

    def _ended(self, worker_id: str, error: str | None, reusable: bool) -> None:
        self._process.later(self._random.uniform(0.0, 0.3), self._end, worker_id, error, reusable)

    def _end(self, worker_id: str, error: str | None, reusable: bool) -> None:
        worker = self.workers.get(worker_id)
        reusable = reusable and worker is not None and worker.process.alive
        self._carry(self._fleet.worker_ended(worker_id, error, self._loop.time(), reusable=reusable))
