"""All of a server but its sockets: state directory, store, jobs and who runs them, on one event loop."""

import asyncio
import functools
import time
from collections.abc import Callable

from lockstep_proto import failpoints
from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server import cluster
from lockstep_server.data_service import DataService
from lockstep_server.directory import Directory
from lockstep_server.exchange import Exchange
from lockstep_server.fleet_service import FleetService
from lockstep_server.housekeeping import Housekeeping, remove_orphans
from lockstep_server.job_files import JobFiles
from lockstep_server.job_service import JobService
from lockstep_server.jobs import Jobs
from lockstep_server.journal import Journal
from lockstep_server.metrics import Metrics
from lockstep_server.run import JobRun
from lockstep_server.scheduler import Scheduler
from lockstep_server.settings import Settings
from lockstep_server.state_dir import StateDir
from lockstep_server.store import Store
from lockstep_server.tools import Tools
from lockstep_server.uploads import Uploads
from lockstep_server.watchdog import Watchdog


class Controller:
    """The jobs of one state directory and the services that act on them. Raises StartError.

    `clock` tells seconds since 1970, `monotonic` seconds from anywhere.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        numerics: NumericsFingerprint,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._numerics = numerics
        self._clock = clock
        self._monotonic = monotonic
        self._state = StateDir(settings.state_dir)
        failpoints.hit("server.start.locked")
        try:
            store = Store(self._state.database)
        except BaseException:
            self._state.close()
            raise
        self._journal = Journal(store)
        self._uploads = Uploads(self._state.uploads, max_bytes=settings.max_upload_bytes, clock=clock)
        self._directory = Directory.read(store, last_seen_s=self._state.last_seen_s, now_s=clock())
        remove_orphans(self._state.jobs, self._directory)
        self._put_together(self._tools())
        self._housekeeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take up the jobs that ran."""
        self._scheduler.start()
        self._housekeeper = asyncio.create_task(self._housekeeping.run())

    def refuse(self) -> None:
        """Take no new jobs."""
        self._jobs.close()

    async def halt(self) -> None:
        """Checkpoint what runs, and leave it to a later server."""
        self.refuse()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
        await self._scheduler.halt()

    async def close(self) -> None:
        """Write what is left and let go of the state directory."""
        await self._journal.close()
        self._state.seen(self._clock())
        self._state.close()

    def _put_together(self, tools: Tools) -> None:
        self._scheduler = Scheduler(self._directory, tools)
        self._jobs = Jobs(self._directory, self._scheduler, tools)
        self._housekeeping = Housekeeping(
            self._settings,
            self._directory,
            self._jobs,
            Watchdog(self._directory, self._scheduler, self._journal),
            self._journal,
            self._uploads,
            seen=self._state.seen,
            clock=self._clock,
            monotonic=self._monotonic,
        )
        self.job_service = JobService(self._jobs, self._describe)
        self.data_service = DataService(self._uploads)
        self.fleet_service = FleetService(self._scheduler)
        self.exchange = Exchange(self._scheduler.run, self._directory.has_ended)

    def _tools(self) -> Tools:
        settings = self._settings
        return Tools(
            journal=self._journal,
            uploads=self._uploads,
            files=lambda job_id: JobFiles(self._state.jobs / job_id, keep_checkpoints=settings.keep_checkpoints),
            make_run=functools.partial(
                JobRun,
                lease_s=settings.lease_s,
                checkpoint_s=settings.checkpoint_s,
                max_unsummed_bytes=settings.max_unsummed_bytes,
                far=settings.far,
                shares_memory=settings.share_memory,
                metrics=self._metrics,
                clock=self._monotonic,
            ),
            metrics=self._metrics,
            numerics=self._numerics,
            clock=self._clock,
        )

    def _describe(self) -> service_pb2.Cluster:
        return cluster.describe(self._directory, self._scheduler, self._numerics)
