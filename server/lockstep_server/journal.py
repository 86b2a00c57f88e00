"""Writes to the store in batches from one thread of its own, so that no step waits for a disk."""

import asyncio
import functools
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lockstep_proto import failpoints
from lockstep_proto.v1 import service_pb2
from lockstep_server.errors import DiskFullError, ServerError, StorageError
from lockstep_server.records import EpochRecord, StepRecord
from lockstep_server.store import Batch, Store, StoredJob

T = TypeVar("T")
log = logging.getLogger(__name__)

HISTORY_PIECE = 50_000  # steps and epochs in one piece, which then has 4 MB at the most
LEDGER_PIECE = 5_000  # digests in one piece, which then has 4 MB at the most
MAX_KEPT_ROWS = 200_000  # 100 MB or so: two minutes of a tiny network's steps, two days of a large one's
MAX_ROWS = 20_000  # flushed before its time: about what a second of a tiny network's steps makes at the most


class Journal:
    """Collects rows and writes them, in order, when flushed. Used on the event loop.

    Rows of a flush that failed stay and are written by the next one, so a disk that was full for a while costs nothing.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._batch = Batch()
        self._under_way = Batch()  # being written now; it goes back into the batch if that fails
        self._writing = asyncio.Lock()  # else rows of a failed flush could be written over newer ones
        self._early: asyncio.Task[None] | None = None
        self.trouble = ""  # why rows cannot be written now

    def job(self, row: StoredJob) -> None:
        """The job as it stands."""
        self._batch.jobs[row.job.id] = row

    def event(self, job_id: str, event: service_pb2.Event) -> None:
        """One more event."""
        self._batch.events[job_id, event.sequence] = event

    def step(self, job_id: str, record: StepRecord) -> None:
        """One more step; called for every one."""
        self._batch.steps[job_id, record.step] = record
        if len(self._batch.steps) % MAX_ROWS == 0 and self._early is None:
            self._early = asyncio.create_task(self._flush_early())

    def epoch(self, job_id: str, record: EpochRecord) -> None:
        """One more epoch."""
        self._batch.epochs[job_id, record.epoch] = record

    def digest(self, job_id: str, entry: service_pb2.LedgerEntry) -> None:
        """One more digest."""
        self._batch.ledger[job_id, entry.version] = entry

    async def flush(self) -> None:
        """Return when all rows so far are on disk. Raises DiskFullError or StorageError."""
        async with self._writing:
            failpoints.hit("server.journal.flush")
            batch = self._under_way = self._batch
            self._batch = Batch()
            try:
                if batch:
                    await self._do(lambda: self._store.write(batch))
                    self._untroubled()
            except BaseException as error:
                self._batch = batch.under(self._batch)
                if isinstance(error, ServerError):
                    self._troubled(str(error))
                raise
            finally:
                self._under_way = Batch()

    async def try_flush(self) -> bool:
        """Flush; rows that cannot be written now are kept for the next flush."""
        try:
            await self.flush()
        except (DiskFullError, StorageError):
            return False
        return True

    @property
    def overfull(self) -> bool:
        """Whether more rows wait to be written than should be in memory."""
        return bool(self.trouble) and len(self._batch) > MAX_KEPT_ROWS

    async def by_request(self, request_id: str) -> StoredJob | None:
        """The job on disk that a request made. Raises StorageError."""
        return await self._do(lambda: self._store.by_request(request_id))

    async def events(self, job_id: str) -> list[service_pb2.Event]:
        """The events of a job, those that could not be written yet included."""
        await self.try_flush()
        unwritten = self._under_way.under(self._batch).events.items()  # looked at first: it may be written meanwhile
        events = {event.sequence: event for (owner, _), event in unwritten if owner == job_id}
        events |= {event.sequence: event for event in await self._do(lambda: self._store.events(job_id))}
        return [events[sequence] for sequence in sorted(events)]

    async def history(self, job_id: str) -> AsyncIterator[service_pb2.History]:
        """The history of a job, as far as it could be written, in pieces."""
        await self.try_flush()
        length = await self._do(lambda: self._store.history_length(job_id))
        for lo in range(0, length, HISTORY_PIECE):
            yield await self._do(functools.partial(self._store.history, job_id, lo, lo + HISTORY_PIECE))

    async def ledger(self, job_id: str) -> AsyncIterator[service_pb2.Ledger]:
        """The ledger of a job, as far as it could be written, in pieces."""
        await self.try_flush()
        last = -1
        while entries := await self._do(functools.partial(self._store.ledger, job_id, last, LEDGER_PIECE)):
            yield service_pb2.Ledger(entries=entries)
            last = entries[-1].version

    async def ledger_after(self, job_id: str, version: int) -> list[service_pb2.LedgerEntry]:
        """What could be written of the ledger of a job on later versions than this."""
        await self.try_flush()
        return await self._do(lambda: self._store.ledger(job_id, version))

    def drop(self, job_id: str) -> None:
        """Forget what is still to be written of a job."""
        self._batch = self._batch.without(job_id)

    async def delete(self, job_id: str) -> None:
        """Remove a job and what is still to be written of it; if that cannot be, all stays. Raises as `flush` does."""
        async with self._writing:
            await self._do(lambda: self._store.delete(job_id))
            self.drop(job_id)

    async def close(self) -> None:
        """Write what is left and close the store."""
        await self.try_flush()  # what the disk does not take is computed again
        await self._do(self._store.close)
        self._thread.shutdown()

    def _troubled(self, message: str) -> None:
        if not self.trouble:  # said once
            log.warning("%s; rows are kept in memory until it can", message)
        self.trouble = message

    def _untroubled(self) -> None:
        if self.trouble:
            log.info("the database can be written again")
        self.trouble = ""

    async def _flush_early(self) -> None:
        await self.try_flush()
        self._early = None

    async def _do(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
                raise DiskFullError(
                    "the server's disk is full: the database cannot be written; free some space"
                ) from error
            raise StorageError(f"the server's database cannot be used: {error}") from error
