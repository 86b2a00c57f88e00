"""What the server does by the clock: flush, deadlines, and the end of what was kept long enough."""

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from lockstep_server.directory import Directory
from lockstep_server.jobs import Jobs
from lockstep_server.journal import Journal
from lockstep_server.lifecycle import name
from lockstep_server.settings import Settings
from lockstep_server.uploads import Uploads
from lockstep_server.watchdog import Watchdog

log = logging.getLogger(__name__)

TICK_S = 1.0  # history is on disk this long after it was made
SWEEP_S = 3600.0  # retention counts in days


class Housekeeping:
    """Acts on every `tick`; times in seconds, `clock` since 1970 and `monotonic` from anywhere.

    `seen` is told, at every tick, when the server was alive.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        jobs: Jobs,
        watchdog: Watchdog,
        journal: Journal,
        uploads: Uploads,
        *,
        seen: Callable[[float], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._jobs = jobs
        self._watchdog = watchdog
        self._journal = journal
        self._uploads = uploads
        self._seen = seen
        self._clock = clock
        self._monotonic = monotonic
        self._sweep_at = monotonic()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except Exception:  # the next one may do better, and without any nothing would reach the disk
                log.exception("housekeeping failed")

    async def tick(self) -> None:
        """Do what is due."""
        now = self._monotonic()
        self._seen(self._clock())
        await self._journal.try_flush()
        self._watchdog.look(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            await self.sweep()

    async def sweep(self) -> None:
        """Delete ended jobs and unused uploads that are older than the settings allow."""
        oldest = self._clock() - self._settings.keep_finished_s
        for record in self._directory:
            if record.ended and record.job.finished.ToMicroseconds() / 1e6 < oldest:
                freed = await self._jobs.delete(record.id)
                log.info("deleted an old job (%s), freed_bytes=%d", name(record.state), freed, extra={"job": record.id})
        needed = {upload_id for record in self._directory if not record.ended for upload_id in record.uploads}
        unused = self._uploads.unused(needed, self._settings.keep_uploads_s)
        freed = await asyncio.to_thread(self._uploads.free, unused)
        if unused:
            log.info("deleted %d unused uploads, freed_bytes=%d", len(unused), freed)


def remove_orphans(jobs: Path, directory: Directory) -> None:
    """Remove the files of jobs whose deletion a crash interrupted."""
    for files in jobs.iterdir() if jobs.exists() else ():
        if files.name not in directory:
            shutil.rmtree(files)
            log.info("removed the files of a deleted job", extra={"job": files.name})
