"""How a job is shown while it trains."""

import io
from typing import Any

import pytest

from lockstep import progress
from lockstep.job import Job
from lockstep.progress import Display, describe
from lockstep.records import Event
from lockstep.watching import Update
from lockstep_proto.v1 import job_pb2, service_pb2

State = service_pb2.JobState
TRAINING = {"state": State.JOB_STATE_RUNNING, "phase": "step 120 of 900", "step": 120, "num_steps": 900}
TRAINING |= {"epoch": 10, "num_epochs": 75, "loss": 0.51234, "rows_per_s": 12345.6, "num_workers": 2}


def job(**fields: Any) -> Job:
    return Job(None, service_pb2.Job(id="abcdef012345", spec=job_pb2.JobSpec(name="digits"), **fields))  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes as the test says."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"state": State.JOB_STATE_PENDING, "phase": "queued behind 1 job"}, "digits  pending  queued behind 1 job"),
        ({"state": State.JOB_STATE_RUNNING, "phase": "loading data"}, "digits  loading data"),
        (TRAINING, "digits  step 120/900  epoch 10/75  loss 0.5123  12,346 rows/s  2 workers"),
        (
            TRAINING | {"validation_loss": 0.25, "validation_accuracy": 0.9, "remaining_s": 75.4, "num_workers": 1},
            "digits  step 120/900  epoch 10/75  loss 0.5123  val loss 0.2500  val acc 0.9000  12,346 rows/s  1 worker"
            "  1:15 left",
        ),
        (
            TRAINING | {"remaining_s": 3 * 3600 + 65.0, "rows_per_s": 0.0, "loss": None},
            "digits  step 120/900  epoch 10/75  2 workers  3:01:05 left",
        ),
        (
            TRAINING | {"phase": "evaluating after epoch 10 of 75", "num_workers": 1},
            "digits  step 120/900  epoch 10/75  loss 0.5123  12,346 rows/s  1 worker",
        ),
        (
            TRAINING | {"phase": "recovering", "num_workers": 0, "rows_per_s": 0.0},
            "digits  recovering  step 120/900  epoch 10/75  loss 0.5123  0 workers",
        ),
        (
            TRAINING | {"state": State.JOB_STATE_PAUSED, "phase": "paused"},
            "digits  paused  step 120/900  epoch 10/75  loss 0.5123",
        ),
        (
            TRAINING | {"state": State.JOB_STATE_FAILED, "phase": "failed", "message": "no more workers"},
            "digits  failed  step 120/900  epoch 10/75  loss 0.5123  no more workers",
        ),
    ],
)
def test_one_line_says_how_a_job_stands(fields: dict[str, Any], line: str) -> None:
    assert describe(job(**fields)) == line


def test_a_program_gets_a_line_each_second_and_the_end(clock: list[float]) -> None:
    out = io.StringIO()
    display = Display(out)
    for step, passed_s in ((1, 0.0), (2, 0.5), (3, 0.5), (4, 0.9)):
        clock[0] += passed_s
        display.show(Update(job(**TRAINING | {"step": step})))
    display.show(Update(job(**TRAINING | {"step": 5, "state": State.JOB_STATE_SUCCEEDED, "phase": "succeeded"})))
    display.close()
    assert [line.split("  ")[1:3] for line in out.getvalue().splitlines()] == [
        ["step 1/900", "epoch 10/75"],
        ["step 3/900", "epoch 10/75"],
        ["succeeded", "step 5/900"],
    ]


def test_a_line_that_says_nothing_new_is_not_repeated(clock: list[float]) -> None:
    out = io.StringIO()
    display = Display(out)
    for _ in range(3):
        clock[0] += 10
        display.show(Update(job(state=State.JOB_STATE_PENDING, phase="waiting")))
    assert out.getvalue() == "digits  pending  waiting\n"


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_a_display_that_is_closed_shows_nothing_more(make: type[io.StringIO]) -> None:
    out = make()
    display = Display(out)
    display.show(Update(job(**TRAINING)))
    display.close()
    shown = out.getvalue()
    display.show(Update(job(**TRAINING | {"step": 121}), [], "the server went away"))
    display.close()
    assert out.getvalue() == shown


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    out = Terminal()
    display = Display(out)
    display.show(Update(job(**TRAINING)))
    long = describe(job(**TRAINING))
    display.show(Update(job(state=State.JOB_STATE_PENDING, phase="x")))
    display.close()
    assert out.getvalue() == "\r" + long + "\r" + "digits  pending  x".ljust(len(long)) + "\n"


def test_what_matters_least_is_left_out_where_there_is_no_room() -> None:
    fields = TRAINING | {"validation_loss": 0.25, "validation_accuracy": 0.9, "remaining_s": 75.4}
    whole = describe(job(**fields))
    assert describe(job(**fields), len(whole)) == whole
    assert describe(job(**fields), len(whole) - 1) == whole.replace("val loss 0.2500  ", "")
    narrow = "step 120/900  epoch 10/75  loss 0.5123  12,346 rows/s  2 workers  1:15 left"
    assert describe(job(**fields), 79) == describe(job(**fields), 10) == narrow


def test_a_line_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    Display(out).show(Update(job(**TRAINING)))
    assert out.getvalue() == "\rstep 120/900  epoch"


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_warnings_and_notices_have_lines_of_their_own(out: io.StringIO) -> None:
    def event(severity: str, message: str) -> Event:
        return Event(1, None, severity, message)  # type: ignore[arg-type]

    display = Display(out)
    display.show(Update(job(**TRAINING)))
    events = [event("info", "worker w1 has joined"), event("warning", "worker w2 is lost")]
    display.show(Update(job(**TRAINING), events, "the server went away"))
    display.close()
    lines = [part.rstrip() for part in out.getvalue().replace("\r", "\n").splitlines() if part.strip()]
    assert lines.count("warning: worker w2 is lost") == lines.count("the server went away") == 1
    assert "joined" not in out.getvalue()
