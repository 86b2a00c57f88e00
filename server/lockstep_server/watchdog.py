"""Ends the jobs that cannot go on: no workers, no data, or a database that cannot be written for good."""

from lockstep_proto.v1 import service_pb2
from lockstep_server.deadlines import Deadlines, Wait
from lockstep_server.directory import Directory
from lockstep_server.job_record import JobRecord
from lockstep_server.journal import Journal
from lockstep_server.scheduler import Scheduler
from lockstep_server.supervisor import WARNING


class Watchdog:
    """Looks when told to; times in seconds from anywhere."""

    def __init__(self, directory: Directory, scheduler: Scheduler, journal: Journal) -> None:
        self._directory = directory
        self._scheduler = scheduler
        self._journal = journal
        self._deadlines = Deadlines()
        self._told = ""  # the trouble of the database that jobs have heard of

    def look(self, now: float) -> None:
        """End what has to end."""
        self._look_at_storage()
        waiting = {wait: self._record(wait).spec.workers.wait_s for wait in self._scheduler.waits()}
        for wait in self._deadlines.look(waiting, now):
            self._end(wait)

    def _end(self, wait: Wait) -> None:
        record = self._record(wait)
        within = f"within {record.spec.workers.wait_s:g} s (workers.wait_s)"
        if wait.for_data:
            kind = service_pb2.ERROR_TYPE_DATA_UNAVAILABLE
            message = f"no data {within}: the fleet has told nothing of them; its log may say more"
        else:
            kind = service_pb2.ERROR_TYPE_NO_WORKERS
            message = f"no workers {within}: {self._shortage(record)}"
        self._scheduler.supervisor(record).fail(kind, message)

    def _look_at_storage(self) -> None:
        """Warn of a database that cannot be written, once; end jobs when their history no longer fits into memory."""
        trouble, told = self._journal.trouble, self._told
        self._told = trouble
        for supervisor in self._scheduler.supervisors():
            if self._journal.overfull:
                message = f"{trouble}; what waits to be written does not fit into memory any longer"
                supervisor.fail(service_pb2.ERROR_TYPE_STORAGE, message)
            elif trouble and not told:
                supervisor.event(WARNING, f"{trouble}; the job goes on, with its history in memory")

    def _shortage(self, record: JobRecord) -> str:
        resources = self._scheduler.fleet.resources
        if resources is None:
            return "no fleet is attached; start one with lockstep-fleet"
        needed = record.spec.workers.min
        return f"the cluster has room for {resources.worker_slots}, the job needs {needed} (workers.min)"

    def _record(self, wait: Wait) -> JobRecord:
        record = self._directory.get(wait.job_id)
        assert record is not None, wait
        return record
