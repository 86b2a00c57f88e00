"""What the commands print of jobs, tables and numbers."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import lockstep
from lockstep import addresses, output
from lockstep.job import Job
from lockstep.records import Event
from lockstep_proto.spec import to_dict
from lockstep_proto.v1 import job_pb2, numerics_pb2, service_pb2
from tests.client.test_progress import TRAINING

CREATED = Timestamp(seconds=1_700_000_000)


def job(address: str = addresses.DEFAULT, **fields: Any) -> Job:
    spec = job_pb2.JobSpec(name="digits", batch_size=job_pb2.BatchSize(full=True), loss=job_pb2.LOSS_HUBER)
    return Job(lockstep.Client(address), service_pb2.Job(id="abcdef012345", spec=spec, created=CREATED, **fields))


def test_json_has_what_a_job_tells_of_itself() -> None:
    numerics = numerics_pb2.NumericsFingerprint(numpy_version="2.4")
    told = json.loads(output.to_json(output.job_fields(job(**TRAINING, numerics=numerics))))
    not_told = {"address", "history", "events", "model", "download", "wait", "refresh", "checkpoints", "ledger"}
    verbs = {"stop", "pause", "resume", "delete", "verify"}
    attributes = {name for name in vars(Job) if not name.startswith("_")} - not_told - verbs
    assert set(told) == attributes
    assert (told["state"], told["step"], told["loss"], told["validation_loss"]) == ("running", 120, 0.51234, None)
    assert (told["created"], told["started"]) == ("2023-11-14T22:13:20+00:00", None)
    assert told["numerics"]["numpy_version"] == "2.4"
    assert told["spec"] == {"name": "digits", "loss": "huber", "batch_size": "full"} == to_dict(job().spec)


def test_json_of_messages_has_every_field_whether_set_or_not() -> None:
    worker = service_pb2.WorkerInfo(worker_id="w1", num_cpus=2)
    told = output.message_fields(service_pb2.Cluster(workers=[worker]))
    assert set(told) == {field.name for field in service_pb2.Cluster.DESCRIPTOR.fields}
    assert told["workers"] == [{"worker_id": "w1", "job_id": "", "host": "", "num_cpus": 2}]
    assert told["numerics"]["numpy_version"] == ""
    assert told["queue_depth"] == 0


def test_json_of_repeated_plain_values_is_a_list() -> None:
    told = output.message_fields(job_pb2.Data(target=["a", "b"]))
    assert told["target"] == ["a", "b"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], {"a": [float("nan")]}])
def test_what_is_no_number_is_null_in_json(value: Any) -> None:
    text = output.to_json(value)
    assert "null" in text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_an_event_in_json() -> None:
    event = Event(3, datetime(2026, 1, 2, tzinfo=UTC), "warning", "worker w2 is lost")
    assert json.loads(output.to_json(output.event_fields(event))) == {
        "sequence": 3,
        "time": "2026-01-02T00:00:00+00:00",
        "severity": "warning",
        "message": "worker w2 is lost",
    }


def test_json_is_one_line_for_programs_and_more_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output.print_json({"a": 1})
    assert capsys.readouterr().out == '{"a": 1}\n'

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    output.print_json({"a": 1})
    assert terminal.getvalue() == '{\n  "a": 1\n}\n'


def test_a_table_has_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("id", "name"), [("abcdef", "a"), ("0", "[bold]long[/bold]")])
    assert capsys.readouterr().out == "id      name\nabcdef  a\n0       [bold]long[/bold]\n"


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_fields([("a", 0), ("bcd", "x"), ("long name", None), ("e", "")])
    assert capsys.readouterr().out == "a    0\nbcd  x\n"


def test_status_is_what_there_is_to_tell(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_status(job(**TRAINING))
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: value.strip() for name, value in told.items() if name != "created"} == {
        "job": "abcdef012345",
        "name": "digits",
        "state": "running",
        "phase": "step 120 of 900",
        "step": "120 of 900",
        "epoch": "10 of 75",
        "loss": "0.51234",
        "workers": "2",
    }


def test_a_result_that_is_not_reproducible_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    ended = {"state": service_pb2.JOB_STATE_SUCCEEDED, "digest": "00ff"}
    output.print_status(job(**ended, reproducible=False))
    assert "reproducible  no: numerics = any" in capsys.readouterr().out
    output.print_status(job(**ended, reproducible=True))
    assert "reproducible" not in capsys.readouterr().out


def test_the_next_commands_name_a_server_that_is_not_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = ["lockstep watch abcdef", "lockstep stop abcdef", "lockstep download abcdef -o model.safetensors"]
    plain = "next:  " + "\n       ".join(commands)
    assert output.next_commands(job()) == plain
    elsewhere = output.next_commands(job("host:7"))
    assert [line.split()[-2:] for line in elsewhere.splitlines()] == [["--server", "host:7"]] * 3
    monkeypatch.setenv("LOCKSTEP_SERVER", "host:7")
    assert output.next_commands(job("host:7")) == plain
