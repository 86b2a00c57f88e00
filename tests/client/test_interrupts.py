"""When Ctrl-C and SIGTERM are raised, and that a command ends where they come into gRPC."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from lockstep.client import CLOSE_S, Client
from lockstep.interrupts import Held, held
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import service_pb2, service_pb2_grpc
from tests.client.processes import until
from tests.client.samples import SPEC
from tests.client.servers import command_process, ended

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """SIGINT acts as in a terminal, also where who runs this ignores it; SIGTERM as a command has it."""
    former = [signal.signal(number, signal.default_int_handler) for number in NUMBERS]
    yield
    for number, handler in zip(NUMBERS, former, strict=True):
        signal.signal(number, handler)


def send(number: signal.Signals = signal.SIGINT) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_raised_at_the_next_wait(number: signal.Signals) -> None:
    with held() as signals:
        send(number)
        done = "what is not to be broken"
        with pytest.raises(KeyboardInterrupt):
            signals.run(threading.Event().wait)
    assert done == "what is not to be broken"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_raised_though_something_else_was(number: signal.Signals) -> None:
    def work() -> None:
        with held():
            send(number)
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [signal.getsignal(number) for number in NUMBERS] == [signal.default_int_handler] * 2
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_a_wait(number: signal.Signals) -> None:
    never = threading.Event()

    def work() -> None:
        send(number)
        never.wait()

    with held() as signals:
        with pytest.raises(KeyboardInterrupt):
            signals.run(work)
        assert signals.run(lambda: "it is raised once") == "it is raised once"
        never.set()
        signals.settle(10.0)


def test_a_signal_that_nothing_waits_for_is_raised_at_the_end() -> None:
    done = []

    def work() -> None:
        with held():
            send()
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]


def test_an_error_of_the_work_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise ValueError("no")

    with held() as signals, pytest.raises(ValueError, match="no"):
        signals.run(fail)


def test_the_handlers_are_as_before_at_the_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with held():
        assert isinstance(signal.getsignal(signal.SIGINT), Held)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_inside_of_another_it_is_that_one() -> None:
    with held() as outer:
        with held() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGINT) is outer


def test_a_thread_holds_nothing_back() -> None:
    def in_a_thread() -> bool:
        with held() as mine:
            return mine is not signals and mine.run(lambda: True)

    with held() as signals:
        assert signals.run(in_a_thread)


# Real processes


class Waiting(service_pb2_grpc.JobServiceServicer):
    """A server that has a job of 36 steps, and on which all that is submitted waits until it is deleted."""

    def __init__(self) -> None:
        spec = read_spec(SPEC | {"data": {"path": "rows.csv", "target": "label"}})
        done = service_pb2.Job(id="done", spec=spec, state=service_pb2.JOB_STATE_SUCCEEDED, step=36)
        waiting = service_pb2.Job(id="waiting", spec=spec, state=service_pb2.JOB_STATE_PENDING)
        self.jobs = {job.id: job for job in (done, waiting)}
        self.submitted: list[str] = []

    def Get(self, request: service_pb2.JobRequest, context: Any) -> service_pb2.Job:
        return self.jobs[request.job_id]

    def Submit(self, request: service_pb2.SubmitRequest, context: Any) -> service_pb2.Job:
        job = service_pb2.Job(id="again", spec=request.spec, state=service_pb2.JOB_STATE_PENDING)
        self.jobs[job.id] = job
        self.submitted.append(job.id)
        return job

    def Delete(self, request: service_pb2.JobRequest, context: Any) -> service_pb2.DeleteResponse:
        self.jobs.pop(request.job_id).state = service_pb2.JOB_STATE_STOPPED
        return service_pb2.DeleteResponse()

    def ListCheckpoints(self, request: service_pb2.JobRequest, context: Any) -> service_pb2.CheckpointList:
        return service_pb2.CheckpointList()

    def Watch(self, request: service_pb2.WatchRequest, context: Any) -> Iterator[service_pb2.WatchResponse]:
        job = self.jobs[request.job_id]
        yield service_pb2.WatchResponse(job=job)
        until(lambda: job.id not in self.jobs or not context.is_active())
        yield service_pb2.WatchResponse(job=job)


@pytest.fixture
def waiting() -> Iterator[tuple[Waiting, str]]:
    servicer, server = Waiting(), grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_JobServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


# Between the beginning of a stream and that of the thread that reads it; without that one, closing waits for ever.
INTERRUPTED = """
import signal, threading
import grpc._channel
from lockstep import cli

def interrupted(state, begin=grpc._channel._run_channel_spin_thread):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    begin(state)

grpc._channel._run_channel_spin_thread = interrupted
cli.main()
"""


@pytest.mark.parametrize("arguments", [("verify", "done"), ("watch", "waiting")])
def test_a_command_ends_that_is_interrupted_while_a_stream_begins(
    waiting: tuple[Waiting, str], arguments: tuple[str, str]
) -> None:
    servicer, address = waiting
    command = ["env", "--default-signal=INT", sys.executable, "-X", "faulthandler", "-c", INTERRUPTED]
    with subprocess.Popen(
        [*command, *arguments, "--server", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        _, err = ended(running)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert servicer.submitted == (["again"] if "verify" in arguments else [])
    assert servicer.jobs.keys() == {"done", "waiting"}


def test_closing_does_not_wait_for_a_call_that_was_torn(
    waiting: tuple[Waiting, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(state: object) -> None:
        raise KeyboardInterrupt

    client = Client(waiting[1])
    job = client.get("waiting")
    monkeypatch.setattr("grpc._channel._run_channel_spin_thread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(10 * CLOSE_S)
    assert not closing.is_alive()


def test_a_connection_can_be_closed_while_the_interpreter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    client = Client("127.0.0.1:1")
    monkeypatch.setattr(threading.Thread, "start", refused)
    client.close()
    assert "closed" in repr(client)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_verification_on_a_server_that_does_not_answer_ends_at_once(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with command_process(address, "verify", "done") as running, silent.accept()[0]:
            running.send_signal(number)
            _, err = ended(running, timeout_s=10)
    assert (running.returncode, err) == (130, "")
