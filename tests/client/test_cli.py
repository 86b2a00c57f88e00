"""The `lockstep` command: every verb on a real server, what it prints and its exit code."""

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lockstep
from lockstep import errors
from lockstep_server import jobs as server_jobs
from tests.client.samples import ENDLESS, SPEC, WAITING, Ran, Run, X, Y
from tests.client.servers import ServerThread, command_process, ended, free_port

pytestmark = pytest.mark.cluster

JOB = """
name = "shell"
loss = "cross_entropy"
batch_size = 16
epochs = 2
shards = 4
network = { inputs = 4, layers = [{ units = 3, activation = "softmax" }] }
data = { upload = "rows.csv", target = "label" }
validation = { upload = "rows.csv", target = "label" }
"""


@pytest.fixture
def run(run: Run, client: lockstep.Client, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command that talks to the cluster."""
    monkeypatch.setenv("LOCKSTEP_SERVER", client.address)
    return run


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    rows = "\n".join(",".join(map(str, [*row, label])) for row, label in zip(X.tolist(), Y, strict=True))
    (tmp_path / "rows.csv").write_text("a,b,c,d,label\n" + rows + "\n")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


@pytest.fixture
def waiting(client: lockstep.Client, submit: Callable[..., lockstep.Job]) -> lockstep.Job:
    """A job that stays in the queue."""
    return submit(WAITING)


# From a file to predictions


def test_after_submit_the_next_three_commands_can_be_typed_as_they_are_printed(
    run: Run, job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rows = "../rows.csv"
    submitted = run("submit", job_file)
    assert (submitted.code, submitted.err) == (0, "")
    job_id = re.match(r"job ([0-9a-f]{12}) \(shell\) ", submitted.out)[1]
    commands = [line.removeprefix("next:").strip() for line in submitted.out.splitlines()[1:]]
    assert [command.split()[1] for command in commands] == ["watch", "stop", "download"]
    assert all(job_id[:6] in command.split() for command in commands)
    watched, stopped, downloaded = (run(*shlex.split(command)[1:]) for command in commands)
    assert watched.code == 0
    assert re.search(r"^shell  succeeded  step 6/6  epoch 2/2 .* all 2 epochs are done$", watched.out, re.M)
    assert re.search(r"^sha256 +[0-9a-f]{64}$", watched.out, re.M)
    assert stopped.out == f"job {job_id} (shell) succeeded at step 6: all 2 epochs are done\n"
    assert downloaded.out.startswith("saved model.safetensors: <Model 4-3 float32 sha256:")
    model = lockstep.Model.load("model.safetensors")
    assert model.digest in watched.out

    expected = model.predict(X).tolist()
    assert run("predict", "model.safetensors", rows).out.split() == ["prediction", *map(str, expected)]
    assert run("predict", "model.safetensors", rows, "--format=json").json == expected
    written = run("predict", "model.safetensors", rows, "-o", "predicted.csv")
    assert (written.out, written.err) == ("", "48 predictions in predicted.csv\n")
    assert Path("predicted.csv").read_text().split()[1:] == list(map(str, expected))
    assert run("download", job_id[:4], "-o", "best.safetensors", "--best").code == 0


def test_submit_and_watch_follows_a_job_to_its_end(run: Run, job_file: Path) -> None:
    ran = run("submit", job_file, "--watch", "--timeout", 60, "--set", "training.epochs=3", "--set", "name=other")
    assert ran.code == 0, ran
    assert "other  succeeded  step 9/9  epoch 3/3" in ran.out
    assert re.search(r"^state +succeeded$", ran.out, re.M)


def test_submit_as_json_is_the_job(run: Run, job_file: Path, client: lockstep.Client) -> None:
    job = run("submit", job_file, "--format=json", "--set=workers.min=2", "--request-id=once").json
    assert (job["name"], job["state"], job["spec"]["workers"]["min"]) == ("shell", "pending", 2)
    assert job["spec"]["optimizer"] == {"sgd": {"learning_rate": 0.01, "momentum": 0.0}}, "defaults are filled in"
    assert run("submit", job_file, "--format=json", "--request-id=once").json["id"] == job["id"]
    client.delete(job["id"])


def test_watch_as_json_has_one_document_an_update(run: Run, trained: lockstep.Job) -> None:
    ran = run("watch", trained.id, "--format=json")
    documents = [json.loads(line) for line in ran.out.splitlines()]
    assert documents[-1]["job"]["state"] == "succeeded"
    assert documents[0]["events"][0]["message"] == "submitted"


# Looking


def test_status_tells_how_a_job_stands_and_what_happened_to_it(run: Run, trained: lockstep.Job) -> None:
    said = dict(re.findall(r"^([a-z][a-z0-9 ]*?)  +(.+)$", run("status", trained.id[:5]).out, re.M))
    assert said["job"] == trained.id
    assert said["state"] == "succeeded"
    assert said["rows"] == "48 and 9 for validation"
    assert said["step"] == "6 of 6"
    assert said["sha256"] == trained.digest
    assert {"created", "started", "finished", "loss", "validation loss", "validation accuracy"} <= set(said)
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  submitted$", run("status", trained.id).out, re.M)


def test_status_as_json_has_every_field(run: Run, trained: lockstep.Job) -> None:
    status = run("status", trained.id, "--format=json").json
    assert (status["id"], status["state"], status["stop_reason"]) == (trained.id, "succeeded", "epochs")
    assert (status["step"], status["num_steps"], status["num_rows"], status["num_validation_rows"]) == (6, 6, 48, 9)
    assert (status["digest"], status["reproducible"]) == (trained.digest, True)
    assert status["validation_accuracy"] == trained.validation_accuracy
    assert status["created"] < status["started"] < status["finished"]
    assert status["finished"].endswith("+00:00")
    assert status["numerics"]["numpy_version"] == status["server_numerics"]["numpy_version"] == np.__version__
    assert status["spec"]["network"]["layers"][1] == {"units": 3, "activation": "softmax"}
    assert status["events"][0]["message"] == "submitted"
    assert status["error_type"] == ""


def test_list_shows_the_newest_first(run: Run, trained: lockstep.Job, waiting: lockstep.Job) -> None:
    lines = run("list").out.splitlines()
    assert lines[0].split() == ["id", "name", "state", "step", "loss", "workers", "phase"]
    newest = next(line for line in lines[1:] if line.startswith(waiting.id[:6]))
    assert "waiting  pending" in newest
    assert "waiting for workers: " in newest
    listed = run("list", "--format=json").json
    assert listed[0]["id"] == waiting.id
    assert trained.id in [job["id"] for job in listed]
    assert [job["id"] for job in run("list", "--limit=1", "--format=json").json] == [waiting.id]


def test_cluster_shows_what_is_connected(run: Run, client: lockstep.Client) -> None:
    assert "room for 1 worker of 1 CPU on 1 machine\n" in run("cluster").out
    found = run("cluster", "--format=json").json
    assert (found["fleet_attached"], found["worker_slots"], found["cpus_per_worker"]) == (True, 1, 1)
    assert found["workers"] == []
    assert found["numerics"]["numpy_version"] == np.__version__


def test_health_says_whether_the_server_serves(run: Run, client: lockstep.Client) -> None:
    assert run("health") == Ran(0, f"{client.address} is serving\n", "")
    assert run("health", "--format=json").json == {"server": client.address, "serving": True}


# Steering


def test_a_running_job_is_paused_resumed_stopped_and_deleted(
    run: Run, client: lockstep.Client, submit: Callable[..., lockstep.Job]
) -> None:
    job = submit(ENDLESS)
    next(update for update in client.watch(job.id, timeout_s=60) if update.job.step > 0)
    short = job.id[:4]
    assert "<Worker" not in run("cluster").out
    assert job.id in run("cluster").out
    paused = run("pause", short)
    assert paused.code == 0
    assert re.fullmatch(rf"job {job.id} \(endless\) paused at step \d+(: .*)?\n", paused.out)
    assert run("resume", short).out.startswith(f"job {job.id} (endless) ")
    assert client.get(short).state in ("pending", "running")
    assert re.fullmatch(rf"job {job.id} \(endless\) stopped at step \d+: .+\n", run("stop", short).out)
    refused = run("pause", short)
    assert (refused.code, refused.err) == (
        2,
        f"lockstep: job {job.id} is stopped; only a running job can be paused\n",
    )
    assert re.fullmatch(r"deleted; [\d,]+ bytes of disk are free again\n", run("delete", short).out)
    assert run("status", short).code == 4


# Ids


@pytest.mark.parametrize("verb", ["status", "watch", "stop", "pause", "resume", "delete", "download"])
def test_an_unknown_id_is_not_found(run: Run, verb: str) -> None:
    ran = run(verb, "ffffffffffff")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err == "lockstep: there is no job ffffffffffff; `lockstep list` shows those there are\n"


def test_an_id_that_is_too_short_or_begins_several_is_bad_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("status", "abc") == Ran(2, "", "lockstep: a job id needs at least 4 characters, got 'abc'\n")
    ids = iter(["abcd00000001", "abcd00000002"])
    monkeypatch.setattr(server_jobs.secrets, "token_hex", lambda size: next(ids) if size == 6 else "f" * size)
    with ServerThread(tmp_path / "twins") as server, lockstep.Client(server.address) as client:
        for name in ("one", "two"):
            client.submit(SPEC | {"name": name}, data=(X, Y))
        ran = run("status", "abcd", "--server", server.address)
        assert run("status", "abcd00000001", "--server", server.address).code == 0
    assert ran.code == 2
    assert ran.err == "lockstep: job id abcd is ambiguous: abcd00000001 (one), abcd00000002 (two); give more of it\n"


# Bad input


def test_all_violations_are_named_at_once_with_their_paths(run: Run, job_file: Path) -> None:
    wrong = ["--set=network.layers.0.units=0", "--set=epochs=0", "--set=batchsize=3", "--set=shards=0"]
    for verb in ("submit", "validate"):
        ran = run(verb, job_file, *wrong)
        assert (ran.code, ran.out) == (2, "")
        header, *lines = ran.err.splitlines()
        assert header == "lockstep: the spec breaks 4 rules:"
        paths = [line.strip().partition(": ")[0] for line in lines]
        assert sorted(paths) == ["batchsize", "epochs", "network.layers[0].units", "shards"]
        assert "  network.layers[0].units: must be at least 1, got 0" in lines
        assert "  batchsize: is not known; did you mean 'batch_size'?" in lines


def test_files_that_cannot_be_sent_are_named_before_anything_is_sent(run: Run, job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for verb in ("submit", "validate"):
        ran = run(verb, job_file, "--set=data.upload=absent.csv", "--set=validation.upload=rows.txt")
        assert ran.code == 2
        assert f"  data.upload: {tmp_path}/absent.csv: there is no such file\n" in ran.err
        assert f"  validation.upload: {tmp_path}/rows.txt: its name must end in .csv, " in ran.err
        ran = run(verb, job_file, "--set=data.upload=folder.csv")
        assert ran.err == f"lockstep: data.upload: {tmp_path}/folder.csv: is a directory; an upload is one file\n"


@pytest.mark.parametrize("verb", ["submit", "validate"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.toml", None, "there is no such file"),
        (
            "bad.toml",
            "name = 3 4",
            "is not valid TOML: Expected newline or end of document",
        ),
        ("bad.json", '{"name": }', "is not valid JSON: Expecting value: line 1 column 10 (char 9)"),
        ("list.json", "[]", "must hold a table of fields, got list"),
        ("binary.toml", "\udcff", "is not a text file in UTF-8"),
    ],
)
def test_a_job_file_that_cannot_be_read_is_named(
    run: Run, tmp_path: Path, verb: str, name: str, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    ran = run(verb, tmp_path / name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"lockstep: {tmp_path / name}: {said}")
    assert "Traceback" not in ran.err


def test_a_sound_job_file_is_said_to_be_valid(run: Run, job_file: Path) -> None:
    assert run("validate", job_file) == Ran(0, f"{job_file} is a valid job\n", "")
    spec = run("validate", job_file, "--set=training.epochs=3", "--format=json").json
    assert (spec["epochs"], spec["shards"], spec["data"]["target"]) == (3, 4, ["label"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit"], "the following arguments are required: file"),
        (["submit", "x.toml", "--timeout", "3"], "--timeout limits the watching; it needs --watch"),
        (["list", "--limit", "0"], "must be at least 1, got 0"),
        (["up", "--workers", "0"], "must be at least 1, got 0"),
        (["demo", "--workers", "0"], "must be at least 1, got 0"),
        (["frob"], "invalid choice: 'frob'"),
        (["status", "abcd", "--server", "localhost"], "a server's address is written host:port"),
        (["predict", "absent.safetensors", "rows.csv"], "absent.safetensors: there is no such file"),
    ],
)
def test_wrong_arguments_are_bad_input(run: Run, arguments: list[str], said: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert said in ran.err


def test_a_model_cannot_be_saved_where_there_is_no_directory(run: Run, trained: lockstep.Job, tmp_path: Path) -> None:
    ran = run("download", trained.id, "-o", tmp_path / "no" / "model.safetensors")
    assert (ran.code, ran.err) == (
        2,
        f"lockstep: {tmp_path}/no/model.safetensors: there is no directory {tmp_path}/no\n",
    )
    ran = run("download", trained.id, "-o", tmp_path)
    assert (ran.code, ran.err) == (2, f"lockstep: {tmp_path} is a directory; give the name of a file\n")


def test_a_job_without_a_model_says_so(run: Run, waiting: lockstep.Job, tmp_path: Path) -> None:
    ran = run("download", waiting.id, "-o", tmp_path / "model.safetensors")
    assert (ran.code, ran.err) == (2, "lockstep: the job has no model yet; it is saved when the job ends\n")
    assert list(tmp_path.glob("*.safetensors")) == list(tmp_path.glob(".*.part")) == []


# Other ends


def test_a_failed_job_ends_its_watcher_with_1_and_its_cause(run: Run, job_file: Path) -> None:
    missing = ["--set=data.path=nowhere.csv", "--set=data.target=label"]
    job_file.write_text(re.sub(r"upload = \"rows.csv\", ", "", JOB).replace('validation = { target = "label" }', ""))
    ran = run("submit", job_file, "--watch", *missing)
    assert ran.code == 1, ran
    assert "nowhere.csv: no such file below the data roots" in ran.err
    job_id = re.match(r"job ([0-9a-f]{12}) ", ran.out)[1]
    assert run("watch", job_id).code == 1
    watched = run("watch", job_id, "--format=json")
    assert watched.code == 1
    assert json.loads(watched.out)["job"]["error_type"] == "data_unavailable"
    assert "error: " in run("status", job_id).out
    assert run("status", job_id).code == 0, "looking at it is no failure"


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_timeout_ends_the_watching_and_not_the_job(run: Run, waiting: lockstep.Job, output: str) -> None:
    ran = run("watch", waiting.id, "--timeout", "0.5", f"--format={output}")
    assert ran.code == 124
    assert ran.err == f"lockstep: job {waiting.id} has not ended after 0.5 s; it goes on\n"
    assert waiting.refresh().state == "pending"


def test_submit_and_watch_can_time_out(run: Run, client: lockstep.Client, job_file: Path) -> None:
    ran = run("submit", job_file, "--watch", "--timeout=0.5", "--set=workers.min=2")
    assert ran.code == 124
    job_id = re.match(r"job ([0-9a-f]{12}) ", ran.out)[1]
    assert client.get(job_id).phase == "waiting for workers: 1 of 2 (the cluster has room for 1)"
    client.delete(job_id)


@pytest.mark.parametrize("verb", ["submit", "list", "status", "watch", "stop", "delete", "cluster", "health"])
def test_without_a_server_the_way_to_one_is_told(run: Run, job_file: Path, verb: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    argument = {"submit": [job_file], "list": [], "cluster": [], "health": []}.get(verb, ["abcd"])
    ran = run(verb, *argument, "--server", address)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith(f"lockstep: no Lockstep server answers at {address}; start one with `lockstep up`")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidSpecError([]), 2),
        (errors.InvalidDataError("x"), 2),
        (errors.InvalidModelError("x"), 2),
        (errors.InvalidRequestError("x"), 2),
        (errors.JobStateError("x"), 2),
        (errors.StorageError("x"), 2),
        (errors.ServerError("x"), 2),
        (errors.ServerUnavailableError("x"), 3),
        (errors.PermissionDeniedError("x"), 3),
        (errors.ClusterError("x"), 3),
        (errors.NotFoundError("x"), 4),
        (errors.WaitTimeoutError("x"), 124),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError("x"), 2),
    ],
)
def test_every_error_has_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(lockstep.Client, "list", broken)
    assert run("list").code == code


# Real processes


def interrupt_at(running: subprocess.Popen[str], pattern: str) -> tuple[str, str]:
    """Send a SIGINT after a line of output that has the pattern; return (the line, what comes on stderr)."""
    assert running.stdout is not None
    line = next(line for line in running.stdout if re.search(pattern, line))
    running.send_signal(signal.SIGINT)
    return line, ended(running)[1]


def test_ctrl_c_ends_the_watching_and_not_the_job(run: Run, client: lockstep.Client, job_file: Path) -> None:
    job_file.write_text(JOB.replace("epochs = 2", "steps = 1_000_000_000"))
    with command_process(client, "submit", job_file, "--watch") as running:
        line, err = interrupt_at(running, r"step [1-9]\d*/")
        assert running.returncode == 130
    (job,) = [job for job in client.list(states=["running"]) if job.name == "shell"]
    assert err == (
        f"\njob {job.id} goes on; come back with `lockstep watch {job.id[:6]}` "
        f"or Client({client.address!r}).wait({job.id[:6]!r})\n"
    )
    seen = int(re.search(r"step (\d+)/", line)[1])
    next(update for update in client.watch(job.id, timeout_s=30) if update.job.step > seen)
    job.delete()


def test_ctrl_c_says_how_to_come_back_to_programs_too(client: lockstep.Client, waiting: lockstep.Job) -> None:
    with command_process(client, "watch", waiting.id, "--format=json", "--server", client.address) as running:
        line, err = interrupt_at(running, "waiting for workers")
        assert running.returncode == 130
    assert json.loads(line)["job"]["id"] == waiting.id
    assert f"lockstep watch {waiting.id[:6]}`" in err
    assert "Traceback" not in err


def test_a_reader_that_has_had_enough_is_no_error(client: lockstep.Client, waiting: lockstep.Job) -> None:
    with command_process(client, "list") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(30) == 0
