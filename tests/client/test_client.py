"""The client in Python: what is submitted, what is asked, what is waited for, and what is said when it goes wrong."""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import lockstep
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import job_pb2
from lockstep_server.uploads import Incoming, Uploads
from tests.client.samples import ENDLESS, SPEC, WAITING, X, Y
from tests.client.servers import ServerProcess, ServerThread

pytestmark = pytest.mark.cluster
Submit = Callable[..., lockstep.Job]

TOML = """
name = "small"
loss = "cross_entropy"
batch_size = 16
epochs = 2
shards = 4
seed = 7
network.inputs = 4
network.layers = [{ units = 5, activation = "tanh" }, { units = 3, activation = "softmax" }]
optimizer.sgd = { learning_rate = 0.1, momentum = 0.5 }
"""
MESSAGE = job_pb2.JobSpec(
    name="small",
    loss=job_pb2.LOSS_CROSS_ENTROPY,
    batch_size=job_pb2.BatchSize(rows=16),
    epochs=2,
    shards=4,
    seed=7,
    network=job_pb2.Network(
        inputs=4,
        layers=[
            job_pb2.Layer(units=5, activation=job_pb2.ACTIVATION_TANH),
            job_pb2.Layer(units=3, activation=job_pb2.ACTIVATION_SOFTMAX),
        ],
    ),
    optimizer=job_pb2.Optimizer(sgd=job_pb2.Sgd(learning_rate=0.1, momentum=0.5)),
)


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lockstep.Client]:
    """A server without a fleet: jobs stay in its queue."""
    place = tmp_path_factory.mktemp("lonely")
    with ServerThread(place / "state") as server, lockstep.Client(server.address) as client:
        yield client


# Submitting


def every_source(directory: Path) -> list[Any]:
    (directory / "job.toml").write_text(TOML)
    (directory / "job.json").write_text(json.dumps(SPEC))
    return [SPEC, directory / "job.toml", str(directory / "job.json"), MESSAGE]


def test_a_dict_a_toml_file_a_json_file_and_a_message_are_the_same_job(lonely: lockstep.Client, tmp_path: Path) -> None:
    specs = [lonely.submit(source, data=(X, Y)).spec for source in every_source(tmp_path)]
    assert all(spec == specs[0] for spec in specs)
    assert specs[0].workers.min == 1, "defaults are filled in"
    assert MESSAGE.workers.min == 0, "what was given is left alone"


def test_all_sources_break_the_same_rules(lonely: lockstep.Client, tmp_path: Path) -> None:
    wrong = job_pb2.JobSpec()
    wrong.CopyFrom(MESSAGE)
    wrong.ClearField("loss")
    wrong.network.layers[0].units = 0
    wrong.batch_size.rows = 17
    toml = TOML.replace('loss = "cross_entropy"', "").replace("units = 5", "units = 0").replace("16", "17")
    (tmp_path / "wrong.toml").write_text(toml)
    layers = [{"units": 0, "activation": "tanh"}, SPEC["network"]["layers"][1]]
    values = {k: v for k, v in SPEC.items() if k != "loss"}
    values |= {"batch_size": 17, "network": SPEC["network"] | {"layers": layers}}
    (tmp_path / "wrong.json").write_text(json.dumps(values))
    found = []
    for source in (values, tmp_path / "wrong.toml", tmp_path / "wrong.json", wrong):
        with pytest.raises(lockstep.InvalidSpecError) as caught:
            lonely.submit(source)
        found.append(caught.value.violations)
    assert all(violations == found[0] for violations in found)
    assert [violation.path for violation in found[0]] == ["network.layers[0].units", "loss", "batch_size", "data"]
    assert str(caught.value).splitlines()[2] == ("batch_size: must be a multiple of shards (4), got 17; try 16 or 20")


def test_the_servers_own_violations_arrive_with_their_paths(lonely: lockstep.Client) -> None:
    absent = "0" * 64 + ".npz"
    with pytest.raises(lockstep.InvalidSpecError) as caught:
        lonely.submit(SPEC | {"data": {"upload": absent}})
    (violation,) = caught.value.violations
    assert violation.path == "data.upload"
    assert violation.message == f"the server has no upload {absent}; send it first"


def test_files_that_are_not_there_are_violations_of_their_fields(lonely: lockstep.Client, tmp_path: Path) -> None:
    files = "[data]\nupload = 'rows.csv'\ntarget = 'y'\n[start_from]\nmodel = 'start.safetensors'\n"
    (tmp_path / "job.toml").write_text(TOML + files)
    with pytest.raises(lockstep.InvalidSpecError) as caught:
        lonely.submit(tmp_path / "job.toml")
    assert [str(violation) for violation in caught.value.violations] == [
        f"data.upload: {tmp_path}/rows.csv: there is no such file",
        f"start_from.model: {tmp_path}/start.safetensors: there is no such file",
    ]


def test_arrays_and_models_take_the_place_of_the_files_that_a_spec_names(
    lonely: lockstep.Client, trained: lockstep.Job, tmp_path: Path
) -> None:
    spec = SPEC | {"data": {"upload": "absent.csv", "target": "y"}, "start_from": {"job": "abcd", "best": True}}
    model = trained.model()
    job = lonely.submit(spec, data=(X, Y), initial_model=model)
    assert job.spec.data.upload.endswith(".npz")
    assert job.spec.start_from.model.endswith(".safetensors")
    saved = model.save(tmp_path / "start.safetensors")
    assert lonely.submit(SPEC, data=(X, Y), initial_model=saved).spec == job.spec
    assert lonely.submit(SPEC | {"start_from": {"model": str(saved)}}, data=(X, Y)).spec == job.spec
    assert lonely.submit(trained.spec, data=(X, Y), validation=(X, Y), initial_model=saved).spec.HasField("start_from")


def test_a_model_to_begin_with_must_have_the_networks_shape(lonely: lockstep.Client, tmp_path: Path) -> None:
    model = lockstep.Model(read_spec(SPEC), np.zeros(4 * 5 + 5 + 5 * 3 + 3))
    saved = model.save(tmp_path / "start.safetensors")
    wider = SPEC | {"network": {"inputs": 4, "layers": [{"units": 9}, SPEC["network"]["layers"][1]]}}
    for spec, given, name in (
        (wider, model, "initial_model"),
        (wider, saved, saved),
        (wider | {"start_from": {"model": str(saved)}}, None, saved),
    ):
        with pytest.raises(lockstep.InvalidModelError) as caught:
            lonely.submit(spec, data=(X, Y), initial_model=given)
        assert str(caught.value) == f"{name}: is a model of 4-5-3 float32, the network of the job is 4-9-3 float32"
    saved.write_bytes(b"")
    with pytest.raises(lockstep.InvalidModelError, match="is no whole safetensors file"):
        lonely.submit(SPEC, data=(X, Y), initial_model=saved)


def test_the_same_request_is_the_same_job(lonely: lockstep.Client) -> None:
    first = lonely.submit(SPEC, data=(X, Y), request_id="once")
    again = lonely.submit(SPEC, data=(X, Y), request_id="once")
    other = lonely.submit(SPEC, data=(X, Y))
    assert first.id == again.id != other.id


def test_an_upload_is_sent_once(lonely: lockstep.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    received = []
    receive = Uploads.receive

    def note(self: Uploads, upload_id: str, size: int) -> Incoming:
        received.append(upload_id)
        return receive(self, upload_id, size)

    monkeypatch.setattr(Uploads, "receive", note)
    data = (X + 1, Y)
    first, second = (lonely.submit(SPEC, data=data).spec for _ in range(2))
    assert first == second
    assert received == [first.data.upload]


def test_an_upload_that_the_server_has_no_room_for_is_refused(tmp_path: Path) -> None:
    small = ServerThread(tmp_path / "small", max_upload_bytes=100)
    with (
        small as server,
        lockstep.Client(server.address) as client,
        pytest.raises(OSError, match="up to 100") as caught,
    ):
        client.submit(SPEC, data=(X, Y))
    assert isinstance(caught.value, lockstep.StorageError)


# Asking


def test_a_job_tells_how_it_stands(trained: lockstep.Job, client: lockstep.Client) -> None:
    job = client.get(trained.id[:4])
    assert (job.id, job.name, job.state, job.state.ended) == (trained.id, "trained", "succeeded", True)
    assert (job.step, job.num_steps, job.epoch, job.num_epochs) == (6, 6, 2, 2)
    assert (job.num_rows, job.num_validation_rows, job.attempt) == (48, 9, 1)
    assert (job.stop_reason, job.error_type, job.message) == ("epochs", "", "all 2 epochs are done")
    assert job.started is not None
    assert job.finished is not None
    assert job.created <= job.started <= job.finished <= datetime.now(UTC)
    assert job.reproducible
    assert re.fullmatch("[0-9a-f]{64}", job.digest)
    assert repr(job).startswith(f"<Job {job.id} 'trained' succeeded step 6/6 loss=")
    assert job.events[0].message == "submitted"
    assert [event.sequence for event in job.events] == list(range(1, len(job.events) + 1))


def test_a_waiting_job_has_not_started(submit: Submit) -> None:
    job = submit(WAITING)
    assert (job.started, job.finished, job.loss, job.remaining_s, job.digest) == (None, None, None, None, "")


def test_history_is_dicts_of_lists(trained: lockstep.Job) -> None:
    history = trained.history
    assert history.steps["step"] == [0, 1, 2, 3, 4, 5]
    assert set(history.steps) == {"step", "loss", "gradient_norm", "learning_rate"}
    assert history.steps["learning_rate"] == [0.1] * 6
    assert history.steps["loss"][-1] == trained.loss
    assert history.epochs["epoch"] == [0, 1]
    assert history.epochs["validation_loss"][-1] == trained.validation_loss
    assert {len(column) for column in history.epochs.values()} == {2}
    assert repr(history) == "<History of 6 steps, 2 epochs>"


def test_jobs_are_listed_newest_first_and_by_state(
    client: lockstep.Client, trained: lockstep.Job, submit: Submit
) -> None:
    waiting = submit(WAITING)
    assert client.list()[0].id == waiting.id
    assert trained.id in {job.id for job in client.list(states=["succeeded"])}
    assert [job.id for job in client.list(states=[lockstep.JobState.PENDING])] == [waiting.id]
    assert len(client.list(limit=1)) == 1
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        client.list(limit=0)


def test_cluster_and_health(client: lockstep.Client) -> None:
    assert client.cluster().worker_slots == 1
    assert client.health()


def test_a_model_is_the_last_or_the_best(trained: lockstep.Job, submit: Submit, tmp_path: Path) -> None:
    assert trained.model().digest == trained.digest
    losses = trained.history.epochs["validation_loss"]
    assert (trained.model("best").digest == trained.digest) == (losses[-1] == min(losses))
    with pytest.raises(ValueError, match='"last" or "best"'):
        trained.model("first")  # type: ignore[arg-type]
    with pytest.raises(lockstep.JobStateError, match="no model yet"):
        submit(WAITING).download(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


# Steering


def test_more_workers_asked_than_there_are_the_job_waits_and_says_what_for(
    client: lockstep.Client, submit: Submit
) -> None:
    job = submit(WAITING)
    assert job.state == "pending"
    assert job.phase == "waiting for workers: 1 of 2 (the cluster has room for 1)"
    behind = submit(SPEC)
    assert behind.phase == "queued behind 1 job"
    job.stop()
    assert job.state == "stopped"
    assert behind.wait(timeout_s=60).state == "succeeded"


def test_a_job_is_paused_and_resumed_stopped_and_deleted(client: lockstep.Client, submit: Submit) -> None:
    job = submit(ENDLESS)
    for update in client.watch(job.id, timeout_s=60):
        if update.job.step > 0:
            break
    assert job.refresh().num_workers == 1
    assert job.pause() is job
    assert job.state == "paused"
    paused_at = job.step
    assert job.resume().state in ("pending", "running")
    next(update for update in client.watch(job.id, timeout_s=60) if update.job.step > paused_at)
    assert job.stop().state == "stopped"
    assert job.wait() is job, "a stopped job has ended"
    assert job.stop_reason == "user"
    with pytest.raises(lockstep.JobStateError, match="only a paused job can be resumed"):
        job.resume()
    assert job.delete() > 0
    with pytest.raises(lockstep.NotFoundError, match=f"there is no job {job.id}"):
        job.refresh()


# Waiting


def test_wait_raises_the_cause_of_a_failure(client: lockstep.Client, submit: Submit) -> None:
    job = client.submit(SPEC | {"data": {"path": "absent.csv", "target": "y"}})
    with pytest.raises(lockstep.JobFailedError, match=r"absent\.csv: no such file below the data roots") as caught:
        client.wait(job.id, timeout_s=60)
    assert caught.value.job.state == "failed"
    assert caught.value.error_type == "data_unavailable"
    with pytest.raises(lockstep.JobFailedError):
        caught.value.job.wait()
    job.delete()


HEADER = "a,b,c,d,label\n"
ROW = "1,2,3,4,0\n"


UNUSABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "empty file": ("", {}, "bad.csv: is empty"),
    "no rows": (HEADER, {}, "bad.csv: there are no rows"),
    "few rows": (HEADER + ROW * 3, {}, "bad.csv: the training data has 3 rows, fewer than shards (4)"),
    "no target": (
        HEADER + ROW * 9,
        {"target": "lable"},
        "bad.csv: there is no column 'lable'; did you mean 'label'?",
    ),
    "no weight": (HEADER + ROW * 9, {"weight": "w"}, "bad.csv: there is no column 'w'"),
    "few features": ("a,b,label\n" + "1,2,0\n" * 9, {}, "bad.csv: has 2 feature columns, network.inputs is 4"),
    "text": (
        HEADER + ROW * 5 + "1,2,x,4,0\n" + ROW,
        {},
        "bad.csv: column 'c', data row 6 (the first is 1): 'x' is not a number",
    ),
    "missing": (
        HEADER + ROW * 5 + "1,,3,4,0\n",
        {},
        "bad.csv: column 'b', data row 6 (the first is 1): the value is missing",
    ),
    "nan": (
        HEADER + ROW * 5 + "1,nan,3,4,0\n",
        {},
        "bad.csv: column 'b', data row 6 (the first is 1): the value is nan",
    ),
    "label": (
        HEADER + ROW * 5 + "1,2,3,4,3\n",
        {},
        "bad.csv: column 'label', data row 6 (the first is 1): class labels must",
    ),
}


@pytest.mark.parametrize(("content", "changes", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_data_that_cannot_be_used_are_named_by_file_column_and_row(
    client: lockstep.Client, data_root: Path, content: str, changes: dict[str, Any], said: str
) -> None:
    (data_root / "bad.csv").write_text(content)
    job = client.submit(SPEC | {"data": {"path": "bad.csv", "target": "label"} | changes})
    with pytest.raises(lockstep.JobFailedError) as caught:
        job.wait(timeout_s=60)
    assert str(caught.value).startswith(f"job {job.id} (small) failed: {said}")
    assert job.error_type in ("data_invalid", "data_unavailable")
    job.delete()


def test_watch_yields_every_event_and_ends_with_the_job(client: lockstep.Client, trained: lockstep.Job) -> None:
    (update,) = client.watch(trained.id)
    assert update.job.digest == trained.digest
    assert update.events == trained.events
    assert update.notice == ""
    (later,) = client.watch(trained.id, after_event=update.events[1].sequence)
    assert later.events == update.events[2:]


def test_a_deleted_job_ends_its_watchers(lonely: lockstep.Client) -> None:
    job = lonely.submit(SPEC, data=(X, Y))
    watching = lonely.watch(job.id, timeout_s=60)
    assert next(watching).job.id == job.id
    threading.Thread(target=job.delete).start()
    with pytest.raises(lockstep.NotFoundError, match=job.id):
        list(watching)


TIMED: dict[str, Callable[[lockstep.Client], Any]] = {
    "submit": lambda client: client.submit(SPEC, data=(X, Y), timeout_s=0.3),
    "get": lambda client: client.get("abcd", timeout_s=0.3),
    "list": lambda client: client.list(timeout_s=0.3),
    "stop": lambda client: client.stop("abcd", timeout_s=0.3),
    "pause": lambda client: client.pause("abcd", timeout_s=0.3),
    "resume": lambda client: client.resume("abcd", timeout_s=0.3),
    "delete": lambda client: client.delete("abcd", timeout_s=0.3),
    "cluster": lambda client: client.cluster(timeout_s=0.3),
    "health": lambda client: client.health(timeout_s=0.3),
    "watch": lambda client: list(client.watch("abcd", timeout_s=0.3)),
    "wait": lambda client: client.wait("abcd", timeout_s=0.3),
}


@pytest.fixture(scope="module")
def hanging() -> Iterator[tuple[str, list[float]]]:
    """The address of a server that takes every call and never answers, and the seconds that it was given for each."""
    ending = threading.Event()
    given_s: list[float] = []

    def hang(_: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        given_s.append(context.time_remaining())
        return iter(ending.wait, True)  # type: ignore[arg-type]

    class Hanging(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.stream_stream_rpc_method_handler(hang)

    server = grpc.server(ThreadPoolExecutor(32), handlers=[Hanging()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", given_s
    ending.set()
    server.stop(None).wait()


@pytest.mark.parametrize("verb", TIMED)
def test_a_server_that_does_not_answer_is_given_up_in_time(hanging: tuple[str, list[float]], verb: str) -> None:
    address, given_s = hanging
    given_s.clear()
    started_s = time.monotonic()
    with lockstep.Client(address) as client, pytest.raises(TimeoutError) as caught:
        TIMED[verb](client)
    assert isinstance(caught.value, lockstep.LockstepError)
    assert time.monotonic() - started_s >= 0.3
    assert all(seconds <= 0.31 for seconds in given_s), "gRPC tells the server of some milliseconds more"


@pytest.mark.parametrize("progress", [True, False])
def test_waiting_ends_in_time_and_the_job_goes_on(lonely: lockstep.Client, progress: bool) -> None:
    job = lonely.submit(SPEC, data=(X, Y))
    with pytest.raises(TimeoutError, match=f"job {job.id} has not ended after 0.3 s; it goes on"):
        job.wait(timeout_s=0.3, progress=progress)
    with pytest.raises(lockstep.WaitTimeoutError):
        list(lonely.watch(job.id, timeout_s=0.3))
    assert job.refresh().state == "pending"


# The connection


def test_a_server_that_goes_away_is_dialled_again(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "state") as server, lockstep.Client(server.address) as client:
        job = client.submit(SPEC, data=(X, Y))
        watching = client.watch(job.id, timeout_s=60)
        first = next(watching)
        server.kill()
        update = next(update for update in watching if update.notice)
        assert update.notice == f"the server at {server.address} went away; dialling again"
        server.start()
        update = next(watching)
        assert re.fullmatch(rf"the server at {server.address} is back after \d+\.\d s", update.notice)
        assert not {event.sequence for event in first.events} & {event.sequence for event in update.events}
        job.stop()
        assert [update.job.state for update in watching][-1] == "stopped"


@pytest.mark.parametrize("progress", [True, False])
def test_a_wait_survives_the_server_and_says_so(
    tmp_path: Path, progress: bool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def listen() -> str:
        said.extend([capsys.readouterr().out, caplog.text])
        return "".join(said)

    with ServerProcess(tmp_path / "state") as server, lockstep.Client(server.address) as client:
        job = client.submit(SPEC, data=(X, Y))
        waiting = threading.Thread(target=job.wait, kwargs={"progress": progress, "timeout_s": 60})
        waiting.start()
        server.kill()
        poll(lambda: f"the server at {server.address} went away; dialling again" in listen())
        server.start()
        poll(lambda: f"the server at {server.address} is back" in listen())
        client.stop(job.id)
        waiting.join(30)
    assert job.state == "stopped"
    assert bool(caplog.records) is not progress
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_wait_for_a_server_that_stays_away_ends_in_time(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "state") as server, lockstep.Client(server.address) as client:
        job = client.submit(SPEC, data=(X, Y))
        server.kill()
        with pytest.raises(lockstep.WaitTimeoutError, match=f"job {job.id} has not ended after 0.7"):
            job.wait(timeout_s=0.7)


def poll(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_no_server_is_said_with_the_way_to_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with lockstep.Client(address) as client, pytest.raises(ConnectionError) as caught:
        client.wait("abcd")
    assert str(caught.value).startswith(f"no Lockstep server answers at {address}; start one with `lockstep up`")
    assert isinstance(caught.value, lockstep.ServerUnavailableError)


def test_a_server_that_is_none_of_ours_is_said_to_be_so(lonely: lockstep.Client) -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with lockstep.Client(f"127.0.0.1:{port}") as client, pytest.raises(lockstep.ServerError) as caught:
            client.list()
    finally:
        other.stop(None).wait()
    assert "is no Lockstep server, or one of another version" in str(caught.value)


@pytest.mark.parametrize("address", ["localhost", "http://localhost:50051", "localhost:", ""])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValueError, match=r"is written host:port, like 127\.0\.0\.1:50051; got"):
        lockstep.Client(address)


def test_a_closed_client_says_that_it_is_closed(client: lockstep.Client, trained: lockstep.Job) -> None:
    with lockstep.Client(client.address) as closed:
        job = closed.get(trained.id)
    uses: list[Callable[[], Any]] = [
        job.refresh,
        job.model,
        lambda: job.history,
        lambda: job.events,
        closed.health,
        lambda: list(closed.watch(job.id)),
        lambda: closed.submit(SPEC, data=(X, Y)),
    ]
    for use in uses:
        with pytest.raises(lockstep.ServerUnavailableError, match="is closed; use jobs inside the with block"):
            use()
    assert repr(closed) == f"<Client of {client.address}, closed>"


# Arrays


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((X[:, :3], Y), r"data X must have shape (rows, 4) for network.inputs = 4, got (48, 3)"),
        ((X, Y + 1), "data y has 3 at row "),
        ((X[:0], Y[:0]), "data has no rows"),
        ((np.where(X[7, 2] == X, np.nan, X), Y), "data X has nan at row 7, column 2; remove or fill such rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_sent(
    lonely: lockstep.Client, data: Any, said: str
) -> None:
    before = len(lonely.list(limit=1000))
    with pytest.raises(lockstep.InvalidDataError) as caught:
        lonely.submit(SPEC, data=data)
    assert str(caught.value).startswith(said)
    assert len(lonely.list(limit=1000)) == before
