"""The server put together: store, jobs, gRPC and HTTP, and the order in which they start and end."""

import asyncio
import functools
import time

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from lockstep_proto import channels, failpoints
from lockstep_proto.numerics import fingerprint
from lockstep_proto.v1 import service_pb2, service_pb2_grpc, training_pb2, training_pb2_grpc
from lockstep_server import cluster
from lockstep_server.data_service import DataService
from lockstep_server.directory import Directory
from lockstep_server.errors import StartError
from lockstep_server.exchange import ExchangeServicer, add_exchange
from lockstep_server.fleet_service import FleetService
from lockstep_server.housekeeping import Housekeeping, remove_orphans
from lockstep_server.http import HttpServer, start_http
from lockstep_server.interceptor import RpcMetrics
from lockstep_server.job_files import JobFiles
from lockstep_server.job_record import JobRecord
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

GRACE_S = 1.0  # calls under way get this long; clients and workers dial again


class Server:
    """A whole server on the running event loop. `start` raises StartError; use as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = StateDir(settings.state_dir)
        failpoints.hit("server.start.locked")
        try:
            store = Store(self._state.database)
        except BaseException:
            self._state.close()
            raise
        self._metrics = Metrics()
        self._numerics = fingerprint()
        self._directory = Directory()
        self._journal = Journal(store)
        self._uploads = Uploads(self._state.uploads, max_bytes=settings.max_upload_bytes)
        tools = self._tools()
        self._scheduler = Scheduler(self._directory, tools, monotonic=time.monotonic)
        self._jobs = Jobs(self._directory, self._scheduler, tools)
        self._housekeeping = Housekeeping(
            settings,
            self._directory,
            self._jobs,
            self._scheduler,
            self._journal,
            self._uploads,
            clock=time.time,
            monotonic=time.monotonic,
        )
        sequences = store.last_sequences()
        for stored in store.jobs():
            self._directory.add(JobRecord(stored, sequences.get(stored.job.id, 0)))
        remove_orphans(self._state.jobs, self._directory)
        self._health = health_aio.HealthServicer()
        self._grpc = grpc.aio.server(interceptors=[RpcMetrics(self._metrics)], options=list(channels.server_options()))
        self._http: HttpServer | None = None
        self._housekeeper: asyncio.Task[None] | None = None
        self.serving = False

    async def start(self) -> None:
        """Bind both ports and take up the jobs that ran. Raises StartError, with nothing left behind."""
        try:
            self._add_services()
            self.grpc_address = self._bind()
            self._http = self._start_http()
            self.http_address = _address(self._settings.host, self._http.port)
            await self._grpc.start()
        except BaseException:
            await self.stop()
            raise
        failpoints.hit("server.start.ready")
        self._scheduler.start()
        self._housekeeper = asyncio.create_task(self._housekeeping.run())
        self.serving = True

    async def stop(self) -> None:
        """Checkpoint what runs, end all calls and let go of ports and state directory."""
        failpoints.hit("server.halt.begun")
        self.serving = False
        self._jobs.close()
        await self._health.enter_graceful_shutdown()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
        await self._scheduler.halt()
        failpoints.hit("server.halt.kept")
        await self._grpc.stop(GRACE_S)
        if self._http is not None:
            self._http.stop()
        await self._journal.close()
        self._state.close()

    def _tools(self) -> Tools:
        return Tools(
            journal=self._journal,
            uploads=self._uploads,
            files=lambda job_id: JobFiles(
                self._state.jobs / job_id,
                keep_checkpoints=self._settings.keep_checkpoints,
            ),
            make_run=functools.partial(
                JobRun,
                lease_s=self._settings.lease_s,
                checkpoint_s=self._settings.checkpoint_s,
                metrics=self._metrics,
            ),
            metrics=self._metrics,
            numerics=self._numerics,
            clock=time.time,
        )

    def _add_services(self) -> None:
        def describe() -> service_pb2.Cluster:
            return cluster.describe(self._directory, self._scheduler, self._numerics)

        service_pb2_grpc.add_JobServiceServicer_to_server(JobService(self._jobs, describe), self._grpc)
        service_pb2_grpc.add_DataServiceServicer_to_server(DataService(self._uploads), self._grpc)
        training_pb2_grpc.add_FleetServiceServicer_to_server(FleetService(self._scheduler), self._grpc)
        add_exchange(self._grpc, ExchangeServicer(self._scheduler.run))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        ours = [*service_pb2.DESCRIPTOR.services_by_name.values(), *training_pb2.DESCRIPTOR.services_by_name.values()]
        names = [service.full_name for service in ours]
        reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], self._grpc)

    def _bind(self) -> str:
        wanted = _address(self._settings.host, self._settings.port)
        try:
            port = self._grpc.add_insecure_port(wanted)
        except RuntimeError as error:
            raise StartError(
                f"the port {wanted} cannot be used, most likely it is taken; give another --port"
            ) from error
        return _address(self._settings.host, port)

    def _start_http(self) -> HttpServer:
        settings = self._settings
        try:
            return start_http(settings.host, settings.http_port, self._metrics, lambda: self.serving)
        except OSError as error:
            wanted = _address(settings.host, settings.http_port)
            raise StartError(f"the port {wanted} cannot be used ({error}); give another --http-port") from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
