"""The HTTP side: /metrics for Prometheus, /healthz for whoever restarts servers, and a page that leads to both."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from lockstep_server.metrics import CONTENT_TYPE, Metrics

logger = logging.getLogger(__name__)
POLL_S = 0.05  # how long `stop` waits at most for the accepting thread
SILENCE_S = 10.0  # a connection that says nothing for longer is closed, and its thread ends
_TEXT = "text/plain; charset=utf-8"
_PAGE = b"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Lockstep</title></head>
<body>
<h1>Lockstep server</h1>
<ul><li><a href="/metrics">metrics</a></li><li><a href="/healthz">health</a></li></ul>
</body>
</html>
"""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = False  # else two servers would share the port in silence

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, which HTTPServer does and which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note that a client hung up or fell silent; errors of our own become answers with status 500."""
        logger.debug("a request was not answered", exc_info=True)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape every few seconds is no event."""


class HttpServer:
    """A running server. `port` is the one it is bound to."""

    def __init__(self, server: WSGIServer) -> None:
        self.port: int = server.server_port
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), name="http", daemon=True)
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
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    server_class = _ServerV6 if ":" in host else _Server
    return HttpServer(make_server(host, port, answer, server_class, _QuietHandler))


def _route(path: str, metrics: Metrics, health: Callable[[], bool]) -> tuple[HTTPStatus, str, bytes]:
    match path:
        case "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE, metrics.exposition()
        case "/healthz" if health():
            return HTTPStatus.OK, _TEXT, b"ok\n"
        case "/healthz":
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"not serving\n"
        case "/":
            return HTTPStatus.OK, "text/html; charset=utf-8", _PAGE
    return HTTPStatus.NOT_FOUND, _TEXT, b"there is no such page\n"
