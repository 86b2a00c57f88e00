"""The server put together: jobs, gRPC and HTTP, and the order in which they start and end."""

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from lockstep_proto import channels, failpoints
from lockstep_proto.numerics import fingerprint
from lockstep_proto.v1 import service_pb2, service_pb2_grpc, training_pb2, training_pb2_grpc
from lockstep_server.controller import Controller
from lockstep_server.endpoint import Endpoint
from lockstep_server.errors import StartError
from lockstep_server.http import HttpServer, start_http
from lockstep_server.interceptor import RpcMetrics
from lockstep_server.metrics import Metrics
from lockstep_server.settings import Settings

GRACE_S = 1.0  # calls under way get this long; clients and workers dial again
BIND_ATTEMPTS = 20  # at a free port whose next one is free, too


class Server:
    """A whole server on the running event loop. `start` raises StartError; use as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._controller = Controller(settings, self._metrics, fingerprint())
        self._health = health_aio.HealthServicer()
        self._grpc = grpc.aio.server(interceptors=[RpcMetrics(self._metrics)], options=list(channels.server_options()))
        self._endpoint: Endpoint | None = None
        self._http: HttpServer | None = None
        self.serving = False

    async def start(self) -> None:
        """Bind all ports and take up the jobs that ran. Raises StartError, with nothing left behind."""
        try:
            self._add_services()
            self._endpoint = self._bind()
            self.grpc_address = _address(self._settings.host, self._endpoint.port - 1)
            self._http = self._start_http()
            self.http_address = _address(self._settings.host, self._http.port)
            await self._grpc.start()
            self._endpoint.start()
        except BaseException:
            await self.stop()
            raise
        failpoints.hit("server.start.ready")
        self._controller.start()
        self.serving = True

    async def stop(self) -> None:
        """Checkpoint what runs, end all calls and let go of ports and state directory."""
        failpoints.hit("server.halt.begun")
        self.serving = False
        self._controller.refuse()
        await self._health.enter_graceful_shutdown()
        await self._controller.halt()
        failpoints.hit("server.halt.kept")
        if self._endpoint is not None:
            self._endpoint.close()
        await self._grpc.stop(GRACE_S)
        if self._http is not None:
            self._http.stop()
        await self._controller.close()

    def _add_services(self) -> None:
        controller = self._controller
        service_pb2_grpc.add_JobServiceServicer_to_server(controller.job_service, self._grpc)
        service_pb2_grpc.add_DataServiceServicer_to_server(controller.data_service, self._grpc)
        training_pb2_grpc.add_FleetServiceServicer_to_server(controller.fleet_service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        ours = [*service_pb2.DESCRIPTOR.services_by_name.values(), *training_pb2.DESCRIPTOR.services_by_name.values()]
        names = [service.full_name for service in ours]
        reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], self._grpc)

    def _bind(self) -> Endpoint:
        """Take the port for gRPC and the one after it, which workers come to."""
        wanted = self._settings.port
        if wanted:
            self._bind_grpc(wanted)
            return self._bind_exchange(wanted + 1)
        for _ in range(BIND_ATTEMPTS):
            endpoint = self._bind_exchange(0)
            try:
                self._bind_grpc(endpoint.port - 1)
            except StartError:
                endpoint.close()
            else:
                return endpoint
        raise StartError("there are no two free ports one after the other; give a --port")

    def _bind_grpc(self, port: int) -> None:
        wanted = _address(self._settings.host, port)
        try:
            self._grpc.add_insecure_port(wanted)
        except RuntimeError as error:
            raise StartError(_taken(wanted)) from error

    def _bind_exchange(self, port: int) -> Endpoint:
        host = self._settings.host
        try:
            return Endpoint(self._controller.exchange, host, port, self._metrics.rpc)
        except OSError as error:
            raise StartError(_taken(f"{_address(host, port)}, which workers come to,")) from error

    def _start_http(self) -> HttpServer:
        settings = self._settings
        try:
            return start_http(settings.host, settings.http_port, self._metrics, lambda: self.serving)
        except OSError as error:
            wanted = _address(settings.host, settings.http_port)
            raise StartError(f"the port {wanted} cannot be used ({error}); give another --http-port") from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _taken(address: str) -> str:
    return f"the port {address} cannot be used, most likely it is taken; give another --port"
