"""What a verification recomputes, and what becomes of the job that does it."""

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import pytest

from lockstep import verifying
from lockstep.errors import JobStateError, NotFoundError, ServerUnavailableError, WaitTimeoutError
from lockstep.history import History
from lockstep.job import Job
from lockstep.records import Checkpoint, LedgerEntry
from lockstep.verifying import Plan, verify
from lockstep.watching import Update
from lockstep_proto.spec import read_spec, to_dict
from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from tests.client.samples import SPEC

State = service_pb2.JobState


class FakeClient:
    """A server in which a job has the numbers of its step, whatever job it is; `act` happens to a submitted one."""

    address = "127.0.0.1:50051"

    def __init__(self, act: "Callable[[FakeClient, service_pb2.Job], None] | None" = None) -> None:
        self.jobs: dict[str, service_pb2.Job] = {}
        self.submitted: list[str] = []
        self.deleted: list[str] = []
        self.kept = [300, 600, 870, 900]
        self.losses: dict[tuple[str, int], float] = {}
        self.digests: dict[tuple[str, int], str] = {}
        self._act = act or finish

    def make(self, job_id: str, **fields: Any) -> Job:
        self.jobs[job_id] = service_pb2.Job(id=job_id, **fields)
        return Job(self, self.jobs[job_id])  # type: ignore[arg-type]

    def submit(self, spec: Any, *, timeout_s: float) -> Job:
        self.submitted.append("again")
        start = spec.start_from.version
        return self.make("again", spec=spec, state=State.JOB_STATE_PENDING, start_version=start, num_steps=spec.steps)

    def delete(self, job_id: str, *, timeout_s: float) -> int:
        del self.jobs[job_id]
        self.deleted.append(job_id)
        return 0

    def _watch(self, job_id: str, *, timeout_s: float | None, known: Job) -> Iterator[Update]:
        self._act(self, self.jobs[job_id])
        yield Update(Job(self, self.jobs[job_id]))  # type: ignore[arg-type]

    def _checkpoints(self, job_id: str) -> list[Checkpoint]:
        return [Checkpoint(version, 0, 0, 1, datetime(2026, 1, 1, tzinfo=UTC), None) for version in self.kept]

    def _ledger(self, job_id: str) -> list[LedgerEntry]:
        numerics = NumericsFingerprint(numpy_version="2")
        versions = range(self.jobs[job_id].start_version, self.jobs[job_id].step + 1, 10)
        return [
            LedgerEntry(version, self.digests.get((job_id, version), f"{version:064}"), True, 1, numerics, numerics)
            for version in versions
        ]

    def _history(self, job_id: str) -> History:
        steps = list(range(self.jobs[job_id].start_version, self.jobs[job_id].step))
        losses = [self.losses.get((job_id, step), 1.0 / (step + 1)) for step in steps]
        return History({"step": steps, "loss": losses, "gradient_norm": losses}, {})


def finish(client: FakeClient, job: service_pb2.Job) -> None:
    job.step, job.state, job.digest = job.spec.steps, State.JOB_STATE_SUCCEEDED, f"{job.spec.steps:064}"


def done(client: FakeClient, **changes: Any) -> Job:
    """A job that has done its 900 steps."""
    spec = read_spec(SPEC | {"stopping": {"wall_time_s": 60.0}})
    fields = {"spec": spec, "state": State.JOB_STATE_SUCCEEDED, "step": 900, "digest": f"{900:064}"}
    return client.make("original", **fields | changes)


def verified(client: FakeClient, job: Job, **options: Any) -> verifying.Verification:
    defaults = {"from_step": None, "to_step": None, "progress": False, "timeout_s": None}
    return verify(client, job, **defaults | options)  # type: ignore[arg-type]


# What is recomputed


@pytest.mark.parametrize(
    ("kept", "from_step", "to_step", "start", "end"),
    [
        ([300, 600, 900], None, None, 300, 900),
        ([300, 600, 900], None, 600, 300, 600),
        ([300, 600, 900], None, 300, None, 300),
        ([300, 600, 900], 599, None, 300, 900),
        ([300, 600, 900], 600, None, 600, 900),
        ([300, 600, 900], 899, 900, 600, 900),
        ([300, 600, 900], 299, 900, None, 900),
        ([300, 600, 900], 0, 10, None, 10),
        ([900], None, None, None, 900),
        ([0, 900], None, None, 0, 900),
        ([], None, None, None, 900),
    ],
)
def test_it_begins_at_a_kept_checkpoint_or_as_the_job_began(
    kept: list[int], from_step: int | None, to_step: int | None, start: int | None, end: int
) -> None:
    assert Plan.of(done(FakeClient()), kept, from_step, to_step) == Plan(start, end)


def test_a_job_that_started_from_another_is_recomputed_from_where_it_began_itself() -> None:
    job = done(FakeClient(), start_version=500)
    assert Plan.of(job, [900], None, None) == Plan(None, 900)
    assert Plan.of(job, [500, 900], None, None) == Plan(500, 900)


@pytest.mark.parametrize(
    ("from_step", "to_step", "words"),
    [
        (None, 901, "to must be between 501 and 900, the job's last step; got 901"),
        (None, 500, "to must be between 501 and 900, the job's last step; got 500"),
        (900, None, "from must be between 500 and 899, before the last step; got 900"),
        (499, None, "from must be between 500 and 899, before the last step; got 499"),
        (600, 600, "from must be between 500 and 599, before the last step; got 600"),
    ],
)
def test_steps_that_the_job_has_not_done_are_refused(from_step: int | None, to_step: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Plan.of(done(FakeClient(), start_version=500), [], from_step, to_step)


def test_a_job_without_steps_cannot_be_verified() -> None:
    with pytest.raises(JobStateError, match="job original has done no step that could be verified"):
        Plan.of(done(FakeClient(), step=0), [0], None, None)


def test_the_spec_is_the_jobs_own_but_for_its_ends() -> None:
    job = done(FakeClient())
    original, fresh, forked = to_dict(job.spec), to_dict(Plan(None, 70).spec(job)), to_dict(Plan(30, 70).spec(job))
    assert fresh == original | {"name": "small-verify", "steps": 70, "stopping": {}}
    assert forked.pop("start_from") == {"job": "original", "version": 30}
    del fresh["initial_parameters"]
    assert forked == fresh
    read_spec(forked | {"start_from": {"job": "original", "version": 30}})


def test_a_name_of_full_length_still_has_room_for_what_it_is() -> None:
    spec = read_spec(SPEC | {"name": "n" * 64})
    assert Plan(None, 70).spec(done(FakeClient(), spec=spec)).name == "n" * 57 + "-verify"


# What comes of it


def test_equal_numbers_are_equal() -> None:
    client = FakeClient()
    found = verified(client, done(client))
    assert found.equal
    assert (found.job_id, found.from_step, found.to_step) == ("original", 300, 900)
    assert (found.comparison.num_steps, found.comparison.num_digests) == (600, 61)
    assert client.deleted == ["again"]


def test_a_number_that_is_not_what_was_recorded_is_found() -> None:
    client = FakeClient()
    job = done(client)
    client.losses["again", 437] = 0.25
    parting = verified(client, job).comparison.parting
    assert parting is not None
    assert (parting.step, parting.quantity, parting.a, parting.b) == (437, "loss", 1 / 438, 0.25)
    assert client.deleted == ["again"]


def test_the_models_own_digest_counts_at_the_jobs_end_and_only_there() -> None:
    client = FakeClient()
    job = done(client, digest="f" * 64)
    parting = verified(client, job).comparison.parting
    assert parting is not None
    assert (parting.step, parting.quantity) == (900, "digest")
    assert verified(client, job, to_step=899).equal


@pytest.mark.parametrize(
    ("state", "words"), [("JOB_STATE_FAILED", "failed: no such file"), ("JOB_STATE_STOPPED", "stopped: no such file")]
)
def test_a_recomputation_that_does_not_succeed_is_no_verdict(state: str, words: str) -> None:
    def fail(client: FakeClient, job: service_pb2.Job) -> None:
        job.state, job.message = State.Value(state), "no such file"

    client = FakeClient(fail)
    with pytest.raises(JobStateError, match=f"original cannot be verified: the job that recomputes it has {words}"):
        verified(client, done(client))
    assert client.deleted == ["again"]


def test_it_is_deleted_when_a_person_interrupts() -> None:
    def interrupt(client: FakeClient, job: service_pb2.Job) -> None:
        raise KeyboardInterrupt

    client = FakeClient(interrupt)
    with pytest.raises(KeyboardInterrupt):
        verified(client, done(client))
    assert client.deleted == ["again"]


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends a SIGINT, which acts as in a terminal, also where who runs this ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    signal.signal(signal.SIGINT, former)


class Interrupting(FakeClient):
    """One whose job ends only when it is deleted, with a signal at the `point`-th thing that the main thread does."""

    def __init__(self, point: int, ctrl_c: Callable[[], None]) -> None:
        super().__init__()
        self._left, self._ctrl_c = point, ctrl_c
        self._interrupted, self._gone = threading.Event(), threading.Event()
        self.waited = False

    def verify(self) -> None:
        job, former = done(self), sys.gettrace()
        sys.settrace(self.trace)
        try:
            verified(self, job, progress=True)
        finally:
            sys.settrace(former)

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(("/verifying.py", "/interrupts.py", "/job.py", "/contextlib.py")):
            return None
        self._left -= 1
        if self._left == 0:
            self._interrupted.set()
            self._ctrl_c()
        return self.trace

    def _watch(self, job_id: str, *, timeout_s: float | None, known: Job) -> Iterator[Update]:
        if not self._interrupted.wait(3.0):
            self.waited = True
            self._ctrl_c()  # the main thread waits for this one
        assert self._gone.wait(30)
        raise NotFoundError("no such job")
        yield

    def delete(self, job_id: str, *, timeout_s: float) -> int:
        self._gone.set()
        return super().delete(job_id, timeout_s=timeout_s)


def test_it_is_deleted_wherever_a_person_interrupts(ctrl_c: Callable[[], None], capsys: Any) -> None:
    num_submitted = 0
    for point in itertools.count(1):
        client = Interrupting(point, ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            client.verify()
        assert client.jobs.keys() == {"original"}, f"interrupted at point {point}"
        num_submitted += len(client.submitted)
        if client.waited:
            break
    assert num_submitted > 10
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_waits_for_the_answer_to_what_is_being_submitted(ctrl_c: Callable[[], None]) -> None:
    class Slow(FakeClient):
        def submit(self, spec: Any, *, timeout_s: float) -> Job:
            ctrl_c()
            return super().submit(spec, timeout_s=timeout_s)

    client = Slow()
    with pytest.raises(KeyboardInterrupt):
        verified(client, done(client))
    assert client.deleted == ["again"]


def test_an_interrupt_does_not_wait_for_ever_for_an_answer(
    ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verifying, "LEAVING_S", 0.05)
    ending = threading.Event()

    class Silent(FakeClient):
        def submit(self, spec: Any, *, timeout_s: float) -> Job:
            ctrl_c()
            ending.wait()
            raise ServerUnavailableError("no answer")

    client = Silent()
    with pytest.raises(KeyboardInterrupt):
        verified(client, done(client))
    ending.set()
    assert caplog.messages == ["the server has not answered; a job named small-verify may have to be deleted"]


def test_an_interrupt_does_not_wait_for_ever_for_the_deletion(
    ctrl_c: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    given_s = []

    class Keeping(FakeClient):
        def delete(self, job_id: str, *, timeout_s: float) -> int:
            given_s.append(timeout_s)
            raise WaitTimeoutError("no answer")

    def interrupt(client: FakeClient, job: service_pb2.Job) -> None:
        ctrl_c()
        finish(client, job)

    client = Keeping(interrupt)
    with pytest.raises(KeyboardInterrupt):
        verified(client, done(client))
    assert given_s == [pytest.approx(verifying.LEAVING_S, abs=1.0)]
    assert caplog.messages == ["job again (small-verify) could not be deleted: no answer"]


def test_it_is_deleted_when_the_time_is_over() -> None:
    def time_out(client: FakeClient, job: service_pb2.Job) -> None:
        raise WaitTimeoutError("job again has not ended")

    client = FakeClient(time_out)
    with pytest.raises(WaitTimeoutError, match=r"the verification of job original was not done after 2\.5 s"):
        verified(client, done(client), timeout_s=2.5)
    assert client.deleted == ["again"]


def test_a_job_that_cannot_be_deleted_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Keeping(FakeClient):
        def delete(self, job_id: str, *, timeout_s: float) -> int:
            raise NotFoundError("no such job")

    client = Keeping()
    assert verified(client, done(client)).equal
    assert caplog.messages == ["job again (small-verify) could not be deleted: no such job"]


def test_progress_is_shown_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient()
    verified(client, done(client), progress=True)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "small-verify  succeeded  step 900/900  epoch 0/0\n")
