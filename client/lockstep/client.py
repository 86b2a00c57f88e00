"""The connection to a server."""

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lockstep import addresses, watching
from lockstep.calls import CALL_S, SEND_S, Deadline, translated
from lockstep.errors import ServerUnavailableError
from lockstep.history import History
from lockstep.job import Job, JobState, Which
from lockstep.records import Checkpoint, Event, LedgerEntry
from lockstep.watching import Update
from lockstep_proto import channels
from lockstep_proto.v1 import service_pb2, service_pb2_grpc

if TYPE_CHECKING:
    from lockstep.comparing import Comparison
    from lockstep.model import Model
    from lockstep.submission import Spec
    from lockstep.verifying import Verification

CLOSE_S = 1.0  # for the end of calls, which gRPC waits for: one that Ctrl-C came into while it began never ends


class Client:
    """Talks to the server at "host:port". Use it in a with statement, or call `close`."""

    def __init__(self, address: str = addresses.DEFAULT) -> None:
        self.address = addresses.check(address)
        self._channel = channels.connect(address)
        self._stub = service_pb2_grpc.JobServiceStub(self._channel)
        self._is_closed = False

    def submit(
        self,
        spec: "Spec",
        *,
        data: Any = None,
        validation: Any = None,
        initial_model: "Model | str | Path | None" = None,
        request_id: str | None = None,
        timeout_s: float = SEND_S,
    ) -> Job:
        """Queue a job: `spec` is a dict, a TOML or JSON file, or a JobSpec.

        `data` and `validation` are (X, y) or (X, y, weight), arrays or data frames, and are sent; without them the
        spec says where the data are. `initial_model` is what `start_from.model` is in a spec. The same `request_id`
        gives the same job. Raises InvalidSpecError with all violations, InvalidDataError, ServerUnavailableError,
        StorageError if the server's disk is full, and WaitTimeoutError.
        """
        from lockstep.submission import Submission

        submission = Submission(spec, data=data, validation=validation, initial_model=initial_model)
        deadline = Deadline(timeout_s)
        jobs = self._jobs
        with translated(self.address):
            message = submission.send(self._channel, deadline)
            request = service_pb2.SubmitRequest(request_id=request_id or uuid.uuid4().hex, spec=message)
            return Job(self, jobs.Submit(request, timeout=deadline.left_s))

    def get(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """Return a job by its id, or the beginning of one. Raises NotFoundError."""
        return Job(self, self._ask(self._jobs.Get, job_id, timeout_s))

    def list(
        self, *, states: "Sequence[JobState | str]" = (), limit: int = 100, timeout_s: float = CALL_S
    ) -> "list[Job]":
        """Return jobs, newest first."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        wanted = [service_pb2.JobState.Value(f"JOB_STATE_{JobState(state).value.upper()}") for state in states]
        with translated(self.address):
            found = self._jobs.List(service_pb2.ListRequest(states=wanted, limit=limit), timeout=timeout_s)
        return [Job(self, message) for message in found.jobs]

    def stop(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """End a job between two versions; it keeps its model. One that has ended stays as it is."""
        return Job(self, self._ask(self._jobs.Stop, job_id, timeout_s))

    def pause(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """Pause a running job between two versions. Raises JobStateError if it does not run."""
        return Job(self, self._ask(self._jobs.Pause, job_id, timeout_s))

    def resume(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """Take a paused job up again. Raises JobStateError if it is not paused."""
        return Job(self, self._ask(self._jobs.Resume, job_id, timeout_s))

    def delete(self, job_id: str, *, timeout_s: float = CALL_S) -> int:
        """Remove a job with its files, stopping it first if it runs. Return the bytes given back."""
        freed: int = self._ask(self._jobs.Delete, job_id, timeout_s).freed_bytes
        return freed

    def wait(self, job_id: str, *, progress: bool = False, timeout_s: float | None = None) -> Job:
        """Wait until a job has ended; see Job.wait."""
        deadline = Deadline(timeout_s)
        job = self.get(job_id, timeout_s=min(deadline.left_s, CALL_S))
        return job.wait(progress=progress, timeout_s=None if timeout_s is None else deadline.left_s)

    def watch(self, job_id: str, *, after_event: int = 0, timeout_s: float | None = None) -> Iterator[Update]:
        """Yield the job now, and whenever it changes, until it has ended.

        A server that goes away is dialled again, and an update says so. Raises ServerUnavailableError only if it
        was never there, and WaitTimeoutError after `timeout_s`.
        """
        return self._watch(job_id, after_event=after_event, timeout_s=timeout_s)

    def verify(
        self,
        job_id: str,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        progress: bool = False,
        timeout_s: float | None = None,
    ) -> "Verification":
        """Recompute steps of a job, and compare their losses, gradient norms and digests with what is recorded.

        It begins at the newest kept checkpoint at or before `from_step` (default: at the oldest that is kept), or
        else as the job began, and goes to the version `to_step` (default: the last). The recomputing is a job of its
        own, which is deleted afterwards. Raises JobStateError if that does not succeed, ValueError for steps that the
        job has not done, and WaitTimeoutError. Ctrl-C ends it, too.
        """
        from lockstep.interrupts import held

        with held() as signals:
            job = signals.run(lambda: self.get(job_id))
            return job.verify(from_step=from_step, to_step=to_step, progress=progress, timeout_s=timeout_s)

    def diff(self, job_id: str, other_id: str) -> "Comparison":
        """Compare what is recorded of two jobs: where they part, and what they were given that differs."""
        from lockstep.comparing import Record, compare

        return compare(Record.of(self.get(job_id)), Record.of(self.get(other_id)))

    def cluster(self, *, timeout_s: float = CALL_S) -> service_pb2.Cluster:
        """Return the server's version, its fleet and workers."""
        with translated(self.address):
            found: service_pb2.Cluster = self._jobs.GetCluster(service_pb2.GetClusterRequest(), timeout=timeout_s)
        return found

    def health(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the server serves. Raises ServerUnavailableError if none answers."""
        # grpc.health.v1: the request without fields asks for the server as a whole, and a 1 says SERVING
        self._check_open()
        check_health: Any = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        with translated(self.address):
            answer: bytes = check_health(b"", timeout=timeout_s)
        return answer == b"\x08\x01"

    def close(self) -> None:
        """Close the connection."""
        self._is_closed = True
        closing = threading.Thread(target=self._channel.close, daemon=True)
        try:
            closing.start()
        except RuntimeError:  # the interpreter ends and begins no threads any more: the connection ends with it
            return
        closing.join(CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}{', closed' if self._is_closed else ''}>"

    @property
    def _jobs(self) -> Any:
        self._check_open()
        return self._stub

    def _check_open(self) -> None:
        if self._is_closed:
            raise ServerUnavailableError(
                f"the connection to {self.address} is closed; use jobs inside the with block of their Client or cluster"
            )

    def _watch(
        self, job_id: str, *, after_event: int = 0, timeout_s: float | None, known: Job | None = None
    ) -> Iterator[Update]:
        return watching.watch(
            lambda request, timeout: self._jobs.Watch(request, timeout=timeout),
            lambda message: Job(self, message),
            job_id,
            address=self.address,
            after_event=after_event,
            timeout_s=timeout_s,
            known=known,
        )

    def _ask(self, call: Callable[..., Any], job_id: str, timeout_s: float) -> Any:
        with translated(self.address):
            return call(service_pb2.JobRequest(job_id=job_id), timeout=timeout_s)

    def _events(self, job_id: str) -> Sequence[Event]:
        """Return all events so far: the first look of a watch has them."""
        with translated(self.address):
            looks = self._jobs.Watch(service_pb2.WatchRequest(job_id=job_id), timeout=CALL_S)
            events = [Event.from_message(event) for event in next(looks).events]
            looks.cancel()
        return events

    def _history(self, job_id: str) -> History:
        whole = service_pb2.History()
        with translated(self.address):
            for piece in self._jobs.GetHistory(service_pb2.JobRequest(job_id=job_id), timeout=SEND_S):
                whole.MergeFrom(piece)
        return History.from_message(whole)

    def _checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        found = self._ask(self._jobs.ListCheckpoints, job_id, CALL_S)
        return [Checkpoint.from_message(message) for message in found.checkpoints]

    def _ledger(self, job_id: str) -> Sequence[LedgerEntry]:
        with translated(self.address):
            pieces = list(self._jobs.GetLedger(service_pb2.JobRequest(job_id=job_id), timeout=SEND_S))
        return [LedgerEntry.from_message(message) for piece in pieces for message in piece.entries]

    def _download(self, job_id: str, path: Path, which: Which, timeout_s: float) -> Path:
        _check_target(path)
        if which not in _WHICH:
            raise ValueError(f'which must be "last" or "best", got {which!r}')
        request = service_pb2.DownloadModelRequest(job_id=job_id, which=_WHICH[which])
        partial = path.with_name(f".{path.name}.part")
        try:
            with translated(self.address), partial.open("wb") as file:
                for piece in self._jobs.DownloadModel(request, timeout=timeout_s):
                    file.write(piece.data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path


_WHICH = {"last": service_pb2.WHICH_MODEL_LAST, "best": service_pb2.WHICH_MODEL_BEST}


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no directory {path.parent}")
