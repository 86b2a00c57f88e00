"""The jobs the server knows, found by id, by the beginning of an id, by request and by place."""

from collections.abc import Iterator

from lockstep_server.errors import InvalidRequestError, JobNotFoundError
from lockstep_server.job_record import Absence, JobRecord
from lockstep_server.lifecycle import State
from lockstep_server.store import Store

MIN_PREFIX = 4


class Directory:
    """All records, in order of place."""

    def __init__(self) -> None:
        self._records: dict[str, JobRecord] = {}
        self._last_place = 0

    @classmethod
    def read(cls, store: Store, *, last_seen_s: float, now_s: float) -> "Directory":
        """The jobs of a store whose server was last seen alive then; times in seconds since 1970.

        Further events are numbered from the clock on. A crash takes along the newest events, of which clients have been
        told: with their numbers given to others, a client that asks for what came after them would miss those.
        """
        directory, sequences, steps = cls(), store.last_sequences(), store.last_steps()
        for stored in store.jobs():
            record = JobRecord(stored, max(sequences.get(stored.job.id, 0), int(now_s * 1000)))
            if record.state == State.JOB_STATE_RUNNING:
                record.absence = Absence(max(0.0, now_s - last_seen_s), reached=steps.get(record.id, -1) + 1)
            directory.add(record)
        return directory

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(list(self._records.values()))

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._records

    def take_place(self) -> int:
        """A place behind all others, never given twice."""
        self._last_place += 1
        return self._last_place

    def add(self, record: JobRecord) -> None:
        """A further job."""
        self._records[record.id] = record
        self._last_place = max(self._last_place, record.place)

    def remove(self, record: JobRecord) -> None:
        """Forget a job."""
        del self._records[record.id]

    def get(self, job_id: str) -> JobRecord | None:
        """The job with this whole id."""
        return self._records.get(job_id)

    def has_ended(self, job_id: str) -> bool:
        """Whether the job with this whole id will never run again; one that is not known was deleted."""
        record = self.get(job_id)
        return record is None or record.ended

    def by_request(self, request_id: str) -> JobRecord | None:
        """The job that a request made; a request without an id made none."""
        return next((record for record in self if request_id and record.request_id == request_id), None)

    def find(self, prefix: str) -> JobRecord:
        """The job whose id begins so. Raises InvalidRequestError or JobNotFoundError."""
        if len(prefix) < MIN_PREFIX:
            raise InvalidRequestError(f"a job id needs at least {MIN_PREFIX} characters, got {prefix!r}")
        found = [record for record in self if record.id.startswith(prefix)]
        if not found:
            raise JobNotFoundError(f"there is no job {prefix}; `lockstep list` shows those there are")
        if len(found) > 1:
            candidates = ", ".join(f"{record.id} ({record.spec.name})" for record in found)
            raise InvalidRequestError(f"job id {prefix} is ambiguous: {candidates}; give more of it")
        return found[0]
