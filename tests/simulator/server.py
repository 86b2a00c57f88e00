"""The server's machine: the product's controller, in one life after another on the same disk."""

import time
from typing import Any

from lockstep_proto.numerics import fingerprint
from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_server.controller import Controller
from lockstep_server.metrics import Metrics
from lockstep_server.records import StepRecord
from lockstep_server.server import GRACE_S
from lockstep_server.settings import Settings
from tests.simulator import rpc
from tests.simulator.disk import Disk
from tests.simulator.loop import Loop, Process
from tests.simulator.network import Network

ADDRESS = "server"


class ServerHost:
    """Starts the server, and starts it again. `steps` has (job, life, attempt, record) of every step."""

    def __init__(self, loop: Loop, network: Network, disk: Disk, **settings: Any) -> None:
        self.steps: list[tuple[str, int, int, StepRecord]] = []
        self.num_lives = 0
        self.controller: Controller | None = None
        self._loop = loop
        self._network = network
        self._disk = disk
        self._settings = settings
        self._dead: list[Controller] = []
        self.process = loop.root
        self.start()

    @property
    def up(self) -> bool:
        """Whether the server runs."""
        return self.process.alive and self.process is not self._loop.root

    def start(self) -> None:
        """Begin a life."""
        self.num_lives += 1
        self.process = Process(self._loop, f"{ADDRESS}#{self.num_lives}")
        self.process.soon(self._begin)

    def kill(self, *, machine: bool, down_s: float, in_commit: bool = False) -> None:
        """End at once, as by SIGKILL or with the machine, and begin again after a while."""
        if not self.up:
            return
        self._disk.crash(machine=machine, in_commit=in_commit)
        self._network.kill(self.process, silent=machine)
        self._loop.root.later(down_s, self.start)

    def die_at_event(self, num_events: int, *, machine: bool, down_s: float) -> None:
        """Be killed after so many further events."""
        self.process.die_at_event = self.process.num_events + num_events
        self.process.die = lambda: self.kill(machine=machine, down_s=down_s)

    def halt(self, *, down_s: float) -> None:
        """End in order, as by SIGTERM, and begin again after a while."""
        if self.controller is not None and self.up:
            self.process.start(self._halt(self.controller, self.process, down_s))

    def close(self) -> None:
        """Let go of files. Nothing runs any more."""
        for controller in self._dead:
            controller._journal._store.close()
            controller._state.close()

    def _begin(self) -> None:
        settings = Settings(state_dir=self._disk.path, **self._settings)
        controller = Controller(settings, Metrics(), fingerprint(), clock=time.time, monotonic=self._loop.time)
        self.controller = controller
        self._dead.append(controller)
        self._observe(controller)
        rpc.serve(self._network, ADDRESS, self.process, _handlers(controller))
        controller.start()

    async def _halt(self, controller: Controller, process: Process, down_s: float) -> None:
        controller.refuse()
        await controller.halt()
        await self._network.hang_up(process, GRACE_S)
        await controller.close()
        self._dead.remove(controller)
        self._loop.root.soon(self._halted, process, down_s)

    def _halted(self, process: Process, down_s: float) -> None:
        if process.alive:
            self._disk.crash(machine=False)
            self._network.kill(process, silent=False)
            self._loop.root.later(down_s, self.start)

    def _observe(self, controller: Controller) -> None:
        """Take note of every step that is recorded."""
        journal, directory, life = controller._journal, controller._directory, self.num_lives
        record_step = journal.step

        def step(job_id: str, record: StepRecord) -> None:
            self.steps.append((job_id, life, directory.find(job_id).job.attempt, record))
            record_step(job_id, record)

        journal.step = step  # type: ignore[method-assign]


def _handlers(controller: Controller) -> rpc.Handlers:
    jobs = controller.job_service
    ask = service_pb2.JobRequest
    return {
        "Exchange": rpc.exchange(controller.exchange),
        "Attach": rpc.both_ways(controller.fleet_service.Attach, training_pb2.FleetMessage),
        "Submit": rpc.unary(jobs.Submit, service_pb2.SubmitRequest),
        "Get": rpc.unary(jobs.Get, ask),
        "Stop": rpc.unary(jobs.Stop, ask),
        "Pause": rpc.unary(jobs.Pause, ask),
        "Resume": rpc.unary(jobs.Resume, ask),
        "Watch": rpc.streaming(jobs.Watch, service_pb2.WatchRequest),
        "GetHistory": rpc.streaming(jobs.GetHistory, ask),
        "GetLedger": rpc.streaming(jobs.GetLedger, ask),
        "ListCheckpoints": rpc.unary(jobs.ListCheckpoints, ask),
        "DownloadModel": rpc.streaming(jobs.DownloadModel, service_pb2.DownloadModelRequest),
    }
