"""The HTTP side: /metrics for Prometheus, /healthz for whoever restarts servers, and a page that leads to both."""

import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from lockstep_server.metrics import Metrics

_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Lockstep</title></head>
<body><h1>Lockstep server</h1><ul><li><a href="/metrics">metrics</a></li><li><a href="/healthz">health</a></li></ul>
</body></html>
"""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = False


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape every few seconds is no event."""


class HttpServer:
    """A running server. `port` is the one it is bound to."""

    def __init__(self, server: WSGIServer) -> None:
        self.port: int = server.server_address[1]
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_http(host: str, port: int, metrics: Metrics, health: Callable[[], bool]) -> HttpServer:
    """Serve on host:port (0 for a free one) from a thread. Raises OSError if the port is taken."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, kind, body = _route(environ["PATH_INFO"], metrics, health)
        headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]

    return HttpServer(make_server(host, port, answer, _Server, _QuietHandler))


def _route(path: str, metrics: Metrics, health: Callable[[], bool]) -> tuple[HTTPStatus, str, bytes]:
    match path:
        case "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, metrics.exposition()
        case "/healthz":
            healthy = health()
            status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
            return status, "text/plain; charset=utf-8", b"ok\n" if healthy else b"not serving\n"
        case "/":
            return HTTPStatus.OK, "text/html; charset=utf-8", _PAGE
    return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"there is no such page\n"
