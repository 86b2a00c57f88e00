"""Carries out who runs: takes jobs up, and orders their workers from the fleet."""

import asyncio
from typing import TYPE_CHECKING

from lockstep_proto import failpoints
from lockstep_proto.v1 import training_pb2
from lockstep_server import queue
from lockstep_server.deadlines import Wait
from lockstep_server.directory import Directory
from lockstep_server.fleet_link import Attachment, FleetLink
from lockstep_server.job_record import JobRecord
from lockstep_server.lifecycle import State, Wish, name
from lockstep_server.supervisor import INFO, Supervisor
from lockstep_server.tools import Tools

if TYPE_CHECKING:
    from lockstep_server.run import JobRun

PENDING, RUNNING, PAUSED = State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING, State.JOB_STATE_PAUSED


class Scheduler:
    """Keeps a supervisor for every running job and hands the fleet its orders."""

    def __init__(
        self,
        directory: Directory,
        tools: Tools,
    ) -> None:
        self.fleet = FleetLink()
        self._directory = directory
        self._tools = tools
        self._metrics = tools.metrics
        self._supervisors: dict[str, Supervisor] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # Jobs

    def start(self) -> None:
        """Take up the jobs that ran when the server last ended, and do what was asked for before."""
        for record in self._directory:
            if record.state == RUNNING:
                self._supervise(record)
        for record in self._directory:
            self._carry_out(record)
        self.rearrange()

    def supervisor(self, record: JobRecord) -> Supervisor:
        """The supervisor of a job; a job that does not run gets one, to be ended by it."""
        return self._supervisors.get(record.id) or self._supervise(record)

    def run(self, job_id: str) -> "JobRun | None":
        """The run of a job that computes."""
        supervisor = self._supervisors.get(job_id)
        return supervisor.run if supervisor is not None and not supervisor.concluding else None

    def runs(self) -> "list[JobRun]":
        """All runs."""
        return [run for run in map(self.run, self._supervisors) if run is not None]

    def resume(self, record: JobRecord) -> None:
        """Put a paused job back at its place in the queue."""
        record.wish = Wish.NONE
        record.job.message = ""
        record.move(PENDING, self._tools.clock())
        event = record.add_event(INFO, "resumed", self._tools.clock())
        self._tools.journal.event(record.id, event)
        self._tools.journal.job(record.stored())
        failpoints.hit("server.job.resumed")
        self.rearrange()

    def rearrange(self) -> None:
        """Share the cluster out anew: after anything that changes who wants or who has workers."""
        claims = self._claims()
        granted = queue.allot(claims, self.fleet.worker_slots or 0)
        for claim in claims:
            if not claim.running and claim.job_id in granted:
                self._begin(self._record(claim.job_id))
        self._name_phases()
        self.fleet.push(self._orders(granted))
        self._count_states()

    def waits(self) -> list[Wait]:
        """What jobs wait for; a run looks after its own wait for workers. A fleet that attaches begins to load anew."""
        head = queue.waits_for_cluster(self._claims())
        loading_by = None if self.fleet.resources is None else self.fleet.num_attached
        for_data = [
            Wait(job_id, loading_by)
            for job_id, supervisor in self._supervisors.items()
            if supervisor.waits_for_data and not supervisor.concluding
        ]
        return for_data if head is None else [Wait(head, None), *for_data]

    def supervisors(self) -> list[Supervisor]:
        """The supervisors of all running jobs."""
        return list(self._supervisors.values())

    async def halt(self) -> None:
        """Bring all jobs to where a later server takes them up, and let go of them."""
        await asyncio.gather(*(supervisor.halt() for supervisor in self._supervisors.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The fleet

    def resources(self, resources: training_pb2.FleetResources) -> None:
        """The fleet told what the cluster has."""
        first = self.fleet.told(resources)
        self.rearrange()
        if first:
            self.fleet.push(self._orders(queue.allot(self._claims(), resources.worker_slots)), again=True)

    def detached(self, attachment: Attachment) -> None:
        """A fleet's stream has ended."""
        if self.fleet.detach(attachment):
            self.rearrange()

    def data_loaded(self, told: training_pb2.DataLoaded) -> None:
        """The fleet has loaded a job's data."""
        if told.job_id in self._supervisors:
            self._supervisors[told.job_id].data_loaded(told)

    def data_failed(self, told: training_pb2.DataFailed) -> None:
        """The fleet cannot load a job's data."""
        if told.job_id in self._supervisors:
            self._supervisors[told.job_id].fail(told.error_type, told.message)

    def worker_exited(self, told: training_pb2.WorkerExited) -> None:
        """A worker's process has ended by itself."""
        if told.job_id in self._supervisors:
            self._supervisors[told.job_id].worker_exited(told.worker_id, told.message)

    # Parts of the above

    def _begin(self, record: JobRecord) -> None:
        record.move(RUNNING, self._tools.clock())
        failpoints.hit("server.job.begun")
        self._metrics.job_changed(record.id, "RUNNING")
        self._tools.journal.job(record.stored())
        self._supervise(record).event(INFO, "running")

    def _supervise(self, record: JobRecord) -> Supervisor:
        supervisor = self._supervisors[record.id] = Supervisor(record, self._tools)
        supervisor.on_gave_up = self.rearrange
        task = asyncio.get_running_loop().create_task(self._until_concluded(supervisor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return supervisor

    async def _until_concluded(self, supervisor: Supervisor) -> None:
        await supervisor.supervise()
        record = supervisor.record
        del self._supervisors[record.id]
        self._metrics.job_changed(record.id, name(record.state).upper())
        if record.ended:
            self._metrics.job_ended(record.id)
        self._carry_out(record)
        self.rearrange()

    def _carry_out(self, record: JobRecord) -> None:
        """Do what a person has asked of a job, now that it can be done."""
        match record.wish:
            case Wish.STOP if not record.ended:
                self.supervisor(record).stop()
            case Wish.PAUSE if record.state == RUNNING:
                self.supervisor(record).pause()
            case Wish.RESUME if record.state == PAUSED:
                self.resume(record)
            case Wish.RESUME:  # it runs: the server was killed before it was paused
                record.wish = Wish.NONE

    def _claims(self) -> list[queue.Claim]:
        return [
            queue.claim(record.id, record.spec, running=record.state == RUNNING)
            for record in sorted(self._directory, key=lambda record: record.place)
            if record.state in (PENDING, RUNNING) and not self._is_concluding(record)
        ]

    def _is_concluding(self, record: JobRecord) -> bool:
        supervisor = self._supervisors.get(record.id)
        return supervisor is not None and supervisor.concluding

    def _orders(self, granted: dict[str, int]) -> training_pb2.FleetOrders:
        return training_pb2.FleetOrders(
            jobs=[
                training_pb2.JobOrder(
                    job_id=job_id,
                    spec=self._record(job_id).spec,
                    num_workers=num_workers,
                    given_up=self._given_up(job_id),
                )
                for job_id, num_workers in granted.items()
            ],
        )

    def _given_up(self, job_id: str) -> list[str]:
        run = self.run(job_id)
        return [] if run is None else sorted(run.expelled)

    def _name_phases(self) -> None:
        claims = self._claims()
        for claim in claims:
            record = self._record(claim.job_id)
            if not claim.running:
                record.name_phase(queue.pending_phase(claims, record.id, self.fleet.worker_slots))
            elif self._supervisors[record.id].waits_for_data:
                record.name_phase("waiting for a fleet" if self.fleet.resources is None else "loading data")

    def _count_states(self) -> None:
        states = [name(record.state) for record in self._directory]
        counts = {name(state): states.count(name(state)) for state in State.values() if state}
        self._metrics.jobs(counts, counts[name(PENDING)])

    def _record(self, job_id: str) -> JobRecord:
        record = self._directory.get(job_id)
        assert record is not None, job_id
        return record
