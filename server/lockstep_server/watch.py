"""Following a job: its latest state, coalesced, and every event in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from lockstep_proto.v1 import service_pb2
from lockstep_server.errors import JobNotFoundError
from lockstep_server.job_record import JobRecord
from lockstep_server.journal import Journal
from lockstep_server.lifecycle import ENDED

MIN_INTERVAL_S = 0.1  # ten looks a second are as many as a person sees


async def watch(
    record: JobRecord,
    journal: Journal,
    snapshot: Callable[[JobRecord], service_pb2.Job],
    *,
    after_event: int,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[service_pb2.WatchResponse]:
    """The job now and whenever it has changed, until it has ended. Raises JobNotFoundError if it is deleted."""
    with record.watched() as watcher:
        watcher.events.extend(await journal.events(record.id))
        while True:
            watcher.changed.clear()
            if record.deleted:
                raise JobNotFoundError(f"job {record.id} was deleted")
            job = snapshot(record)
            events = watcher.take(after_event)
            after_event = max([after_event, *(event.sequence for event in events)])
            yield service_pb2.WatchResponse(job=job, events=events)
            if job.state in ENDED:
                return
            await pause(MIN_INTERVAL_S)
            await watcher.changed.wait()
