"""Pages of the server, as a browser, a health check and Prometheus see them."""

import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lockstep_server import http as lockstep_http
from lockstep_server.http import start_http
from lockstep_server.metrics import Metrics


@dataclass
class Site:
    """A running server, and what decides its answers."""

    metrics: Metrics
    port: int = 0
    healthy: bool = True

    def get(self, path: str) -> tuple[int, str, str]:
        """Return status, content type and body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(Metrics())
    server = start_http("127.0.0.1", 0, site.metrics, lambda: site.healthy)
    site.port = server.port
    yield site
    server.stop()


def test_metrics_are_served_as_they_are_at_the_scrape(site: Site) -> None:
    for depth in (3, 5):
        site.metrics.jobs({}, queue_depth=depth)
        status, kind, body = site.get("/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        families = {family.name: family for family in text_string_to_metric_families(body)}
        assert families["lockstep_queue_depth"].samples[0].value == depth


def test_health_follows_the_server(site: Site) -> None:
    assert site.get("/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    site.healthy = False
    assert site.get("/healthz")[0] == 503
    site.healthy = True
    assert site.get("/healthz")[0] == 200


def test_the_front_page_is_html_whose_links_lead_somewhere(site: Site) -> None:
    status, kind, body = site.get("/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert body.startswith("<!doctype html>")
    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value or "" for name, value in attrs if name == "href")

    Reader().feed(body)
    assert links == ["/metrics", "/healthz"]
    assert [site.get(link)[0] for link in links] == [200, 200]


def test_other_pages_are_not_found(site: Site) -> None:
    assert site.get("/metric")[0] == 404
    assert site.get("/healthz/more")[0] == 404


def test_a_head_request_gets_no_body(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.request("HEAD", "/healthz")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "3", b"")
    connection.close()


def test_nothing_is_written_about_requests(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    for path in ("/metrics", "/nowhere"):
        site.get(path)
    assert capfd.readouterr() == ("", "")


def test_a_connection_that_says_nothing_holds_up_nobody_and_is_closed(
    site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    address = ("127.0.0.1", site.port)
    with socket.create_connection(address):
        assert site.get("/healthz")[0] == 200
    monkeypatch.setattr(lockstep_http._QuietHandler, "timeout", 0.2)
    with socket.create_connection(address, timeout=30) as silent:
        assert silent.recv(1) == b""
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        start_http("127.0.0.1", taken.getsockname()[1], Metrics(), lambda: True)


def test_a_port_is_free_again_after_the_end() -> None:
    first = start_http("127.0.0.1", 0, Metrics(), lambda: True)
    first.stop()
    second = start_http("127.0.0.1", first.port, Metrics(), lambda: True)
    assert second.port == first.port
    second.stop()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_it_can_listen_on_ipv6() -> None:
    server = start_http("::1", 0, Metrics(), lambda: True)
    with urllib.request.urlopen(f"http://[::1]:{server.port}/healthz", timeout=10) as answer:
        assert answer.read() == b"ok\n"
    server.stop()
