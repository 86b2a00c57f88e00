import contextlib
import queue
import socket
import threading
from concurrent import futures

import grpc
import pytest

from lockstep_proto import channels
from lockstep_proto.v1 import training_pb2, training_pb2_grpc
from lockstep_worker import fleet_link
from lockstep_worker.fleet_link import FleetLink

WAIT_S = 30.0
RESOURCES = training_pb2.FleetMessage(resources=training_pb2.FleetResources(worker_slots=3))
LOADED = training_pb2.FleetMessage(data_loaded=training_pb2.DataLoaded(job_id="a"))


class FleetService(training_pb2_grpc.FleetServiceServicer):
    """Puts what it hears into a queue, and sends the orders of another one; None ends the stream."""

    def __init__(self):
        self.heard = queue.Queue()
        self.orders = queue.Queue()

    def Attach(self, messages, context):
        self.heard.put(next(messages))
        while (orders := self.orders.get(timeout=WAIT_S)) is not None:
            yield orders
            self.heard.put(next(messages))


class Server:
    def __init__(self, service, port=0):
        self.server = grpc.server(futures.ThreadPoolExecutor(4), options=list(channels.server_options()))
        training_pb2_grpc.add_FleetServiceServicer_to_server(service, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def stop(self):
        self.server.stop(None).wait()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(fleet_link, "REDIAL_S", (0.01,))


class Linked:
    def __init__(self, port):
        self.streams = queue.Queue()
        self.orders = queue.Queue()
        self.replaced = threading.Event()
        self.disconnected = threading.Semaphore(0)
        self.link = FleetLink(
            f"127.0.0.1:{port}", self.streams.put, self.orders.put, self.disconnected.release, self.replaced.set
        )

    def connected(self):
        return self.streams.get(timeout=WAIT_S)


@pytest.fixture
def service():
    return FleetService()


def orders_for(job_id):
    return training_pb2.FleetOrders(jobs=[training_pb2.JobOrder(job_id=job_id)])


def test_messages_go_out_and_orders_come_in(service):
    server = Server(service)
    linked = Linked(server.port)
    stream = linked.connected()
    stream.send(RESOURCES)
    assert service.heard.get(timeout=WAIT_S) == RESOURCES
    service.orders.put(orders_for("a"))
    assert linked.orders.get(timeout=WAIT_S) == orders_for("a")
    stream.send(LOADED)
    assert service.heard.get(timeout=WAIT_S) == LOADED
    service.orders.put(None)
    linked.link.close(WAIT_S)
    server.stop()


def test_a_silent_fleet_sends_heartbeats(service, monkeypatch):
    monkeypatch.setattr(channels, "FLEET_HEARTBEAT_S", 0.01)
    server = Server(service)
    linked = Linked(server.port)
    linked.connected()
    assert service.heard.get(timeout=WAIT_S).WhichOneof("kind") == "heartbeat"
    service.orders.put(None)
    linked.link.close(WAIT_S)
    server.stop()


def test_a_server_that_restarts_is_dialled_again_with_a_stream_that_knows_nothing_of_the_old_one(service):
    server = Server(service)
    linked = Linked(server.port)
    old = linked.connected()
    old.send(RESOURCES)
    assert service.heard.get(timeout=WAIT_S) == RESOURCES
    service.orders.put(None)
    server.stop()
    assert linked.disconnected.acquire(timeout=WAIT_S)
    old.send(LOADED)
    again = Server(service, server.port)
    new = linked.connected()
    while not service.heard.empty():
        service.heard.get()
    new.send(RESOURCES)
    assert service.heard.get(timeout=WAIT_S) == RESOURCES
    service.orders.put(None)
    linked.link.close(WAIT_S)
    again.stop()


def test_a_fleet_that_starts_before_the_server_waits_for_it(service):
    server = Server(service)
    server.stop()
    linked = Linked(server.port)
    assert linked.streams.empty()
    server = Server(service, server.port)
    linked.connected().send(RESOURCES)
    assert service.heard.get(timeout=WAIT_S) == RESOURCES
    service.orders.put(None)
    linked.link.close(WAIT_S)
    server.stop()


def test_the_reason_of_a_refusal_is_logged_once(caplog):
    class Refusing(training_pb2_grpc.FleetServiceServicer):
        num_calls = 0

        def Attach(self, messages, context):
            Refusing.num_calls += 1
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "a wrong token")

    server = Server(Refusing())
    linked = Linked(server.port)
    for _ in range(3):
        linked.connected()
    linked.link.close(WAIT_S)
    server.stop()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"not connected to the server at 127.0.0.1:{server.port}: a wrong token; dialling again"]


def test_a_fleet_whose_place_another_has_taken_gives_up():
    class Taken(training_pb2_grpc.FleetServiceServicer):
        def Attach(self, messages, context):
            context.abort(grpc.StatusCode.ABORTED, "another fleet has attached")

    server = Server(Taken())
    linked = Linked(server.port)
    assert linked.replaced.wait(WAIT_S)
    linked.link.close(WAIT_S)
    assert not linked.link._thread.is_alive()
    server.stop()


def test_closing_while_there_is_no_server_ends_soon(service, monkeypatch):
    monkeypatch.setattr(fleet_link, "DIAL_S", 0.1)
    server = Server(service)
    server.stop()
    linked = Linked(server.port)
    linked.link.close(WAIT_S)
    assert not linked.link._thread.is_alive()


class Relay:
    """Passes bytes on until it is told to swallow them, as a link that is cut does."""

    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.cut = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ends = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                self.ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=[source, sink, self.cut], daemon=True).start()

    def _pass_on(self, source, sink, cut):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not cut.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        for end in [self.listener, *self.ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            end.close()

    def mend(self):
        """New connections work; what is cut stays cut."""
        self.cut = threading.Event()


def test_a_server_that_is_gone_without_a_word_is_noticed_and_dialled_again(monkeypatch):
    class Silent(training_pb2_grpc.FleetServiceServicer):
        def Attach(self, messages, context):
            yield from (orders_for("a") for _ in messages)

    ms = {channels.KEEPALIVE_MS: 1000, channels.KEEPALIVE_TIMEOUT_MS: 500}
    quick = tuple((name, ms.get(value, value)) for name, value in channels._BOTH_ENDS)
    server = Server(Silent())
    monkeypatch.setattr(channels, "_BOTH_ENDS", quick)
    relay = Relay(server.port)
    linked = Linked(relay.port)
    linked.connected().send(RESOURCES)
    assert linked.orders.get(timeout=WAIT_S) == orders_for("a")
    relay.cut.set()
    assert linked.disconnected.acquire(timeout=WAIT_S)
    relay.mend()
    linked.connected().send(RESOURCES)
    assert linked.orders.get(timeout=WAIT_S) == orders_for("a")
    linked.link.close(WAIT_S)
    server.stop()
    relay.close()


def test_a_defect_is_logged_and_the_server_dialled_again(service, monkeypatch, caplog):
    def raise_once(*_):
        monkeypatch.undo()
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(FleetLink, "_serve", raise_once)
    server = Server(service)
    linked = Linked(server.port)
    linked.connected().send(RESOURCES)
    assert service.heard.get(timeout=WAIT_S) == RESOURCES
    assert "nobody foresaw this" in caplog.text
    service.orders.put(None)
    linked.link.close(WAIT_S)
    server.stop()
