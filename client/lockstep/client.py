"""The connection to a server."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any, Self

import grpc

from lockstep import arrays, uploads
from lockstep.errors import InvalidSpecError, LockstepError, ServerUnavailableError, WaitTimeoutError, translate
from lockstep.history import History
from lockstep.job import Event, Job, JobState, Which
from lockstep.model import Model
from lockstep_proto import channels
from lockstep_proto.rules import UPLOAD_ID
from lockstep_proto.spec import SpecError, check, read_spec
from lockstep_proto.v1 import job_pb2, service_pb2, service_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
CALL_S = 30.0  # for a call that only asks or tells
SEND_S = 600.0  # for uploads and downloads
REDIAL_S = 0.5
Spec = Mapping[str, Any] | str | Path | job_pb2.JobSpec


@dataclass(frozen=True)
class Update:
    """One look at a watched job. `notice` says what happened to the connection, if something did."""

    job: Job
    events: list[Event] = field(default_factory=list)
    notice: str = ""


class Client:
    """Talks to the server at "host:port". Use it in a with statement, or call `close`."""

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        self.address = address
        self._channel = channels.connect(address)
        self._jobs = service_pb2_grpc.JobServiceStub(self._channel)

    def submit(
        self,
        spec: Spec,
        *,
        data: Any = None,
        validation: Any = None,
        initial_model: "Model | str | Path | None" = None,
        request_id: str | None = None,
        timeout_s: float = SEND_S,
    ) -> Job:
        """Queue a job: `spec` is a dict, a TOML or JSON file, or a JobSpec.

        `data` and `validation` are (X, y) or (X, y, weight), arrays or data frames, and are sent; without them the
        spec says where the data are. `initial_model` gives the parameters at version 0. The same `request_id` gives
        the same job. Raises InvalidSpecError with all violations, InvalidDataError, ServerUnavailableError.
        """
        message, directory = self._read(spec)
        contents = self._pack(message, data=data, validation=validation)
        violations = check(message, require_data=True)
        if violations:
            raise InvalidSpecError(violations)
        deadline = _Deadline(timeout_s)
        with self._translated():
            for upload_id, content in contents.items():
                uploads.send_bytes(self._channel, upload_id, content, deadline.left())
            self._send_files(message, directory, deadline)
            self._send_initial(message, initial_model, directory, deadline)
            request = service_pb2.SubmitRequest(request_id=request_id or uuid.uuid4().hex, spec=message)
            return Job(self, self._jobs.Submit(request, timeout=deadline.left()))

    def get(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """Return a job by its id, or the beginning of one. Raises NotFoundError."""
        return Job(self, self._get(job_id, timeout_s=timeout_s))

    def list(
        self, *, states: "Sequence[JobState | str]" = (), limit: int = 100, timeout_s: float = CALL_S
    ) -> "list[Job]":
        """Return jobs, newest first."""
        wanted = [service_pb2.JobState.Value(f"JOB_STATE_{JobState(state).value.upper()}") for state in states]
        with self._translated():
            found = self._jobs.List(service_pb2.ListRequest(states=wanted, limit=limit), timeout=timeout_s)
        return [Job(self, message) for message in found.jobs]

    def stop(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """End a job between two versions; it keeps its model."""
        return self._steer(self._jobs.Stop, job_id, timeout_s)

    def pause(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """Pause a running job between two versions. Raises JobStateError if it does not run."""
        return self._steer(self._jobs.Pause, job_id, timeout_s)

    def resume(self, job_id: str, *, timeout_s: float = CALL_S) -> Job:
        """Take a paused job up again. Raises JobStateError if it is not paused."""
        return self._steer(self._jobs.Resume, job_id, timeout_s)

    def delete(self, job_id: str, *, timeout_s: float = CALL_S) -> int:
        """Remove a job with its files, stopping it first if it runs. Return the bytes given back."""
        with self._translated():
            return int(self._jobs.Delete(service_pb2.JobRequest(job_id=job_id), timeout=timeout_s).freed_bytes)

    def wait(self, job_id: str, *, progress: bool = False, timeout_s: float | None = None) -> Job:
        """Wait until a job has ended; see Job.wait."""
        return self.get(job_id).wait(progress=progress, timeout_s=timeout_s)

    def watch(self, job_id: str, *, after_event: int = 0, timeout_s: float | None = None) -> Iterator[Update]:
        """Yield the job now, and whenever it changes, until it has ended.

        A server that goes away is dialled again, and an update says so. Raises ServerUnavailableError only if it
        was never there, and WaitTimeoutError after `timeout_s`.
        """
        deadline = _Deadline(timeout_s)
        job: Job | None = None
        away = False
        while True:
            try:
                request = service_pb2.WatchRequest(job_id=job_id, after_event=after_event)
                for response in self._jobs.Watch(request, timeout=deadline.left()):
                    job = Job(self, response.job)
                    after_event = max([after_event, *(event.sequence for event in response.events)])
                    events = [_event(event) for event in response.events]
                    yield Update(job, events, "the server is back" if away else "")
                    away = False
                if job is not None and job.state.ended:
                    return
            except grpc.RpcError as error:
                problem = translate(error, self.address)
                if isinstance(problem, WaitTimeoutError):
                    raise WaitTimeoutError(f"job {job_id} has not ended after {timeout_s:g} s; it goes on") from None
                if not isinstance(problem, ServerUnavailableError) or job is None:
                    raise problem from None
            if job is not None and not away:
                away = True
                yield Update(job, [], f"the server at {self.address} went away; dialling again")
            deadline.check(job_id)
            time.sleep(REDIAL_S)

    def cluster(self, *, timeout_s: float = CALL_S) -> service_pb2.Cluster:
        """Return the server's version, its fleet and workers."""
        with self._translated():
            return self._jobs.GetCluster(service_pb2.GetClusterRequest(), timeout=timeout_s)

    def health(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the server serves. Raises ServerUnavailableError if none answers."""
        # grpc.health.v1: the request without fields asks for the server as a whole, and a 1 says SERVING
        check_health: Any = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        with self._translated():
            answer: bytes = check_health(b"", timeout=timeout_s)
        return answer == b"\x08\x01"

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"

    def _read(self, spec: Spec) -> tuple[job_pb2.JobSpec, Path]:
        """Return the spec with its defaults, and the directory that its file names are relative to."""
        is_file = isinstance(spec, str | Path)
        try:
            return read_spec(spec), Path(spec).parent if is_file else Path()  # type: ignore[arg-type]
        except SpecError as error:
            raise InvalidSpecError(error.violations) from None

    def _pack(self, spec: job_pb2.JobSpec, **given: Any) -> dict[str, bytes]:
        """Enter arrays into the spec. Return what is to be sent, by upload id."""
        contents = {}
        for name, value in given.items():
            if value is None:
                continue
            upload_id, content, weighted = arrays.pack(value, spec, name, training=name == "data")
            weight = "weight" if weighted else ""
            getattr(spec, name).CopyFrom(job_pb2.Data(upload=upload_id, target=["y"], features=["x"], weight=weight))
            contents[upload_id] = content
        return contents

    def _send_files(self, spec: job_pb2.JobSpec, directory: Path, deadline: "_Deadline") -> None:
        for name in ("data", "validation"):
            data = getattr(spec, name)
            if data.upload and not UPLOAD_ID.fullmatch(data.upload):
                path = directory / os.path.expanduser(data.upload)
                data.upload = uploads.send_file(self._channel, path, f"{name}.upload", deadline.left())

    def _send_initial(
        self, spec: job_pb2.JobSpec, model: "Model | str | Path | None", directory: Path, deadline: "_Deadline"
    ) -> None:
        initial = spec.initial_parameters
        if isinstance(model, Model):
            import tempfile

            with tempfile.TemporaryDirectory() as place:
                path = model.save(Path(place) / "model.safetensors")
                initial.model = uploads.send_file(self._channel, path, "initial_model", deadline.left())
        elif model is not None:
            initial.model = uploads.send_file(self._channel, Path(model), "initial_model", deadline.left())
        elif initial.model and not UPLOAD_ID.fullmatch(initial.model):
            path = directory / os.path.expanduser(initial.model)
            initial.model = uploads.send_file(self._channel, path, "initial_parameters.model", deadline.left())

    def _get(self, job_id: str, *, timeout_s: float = CALL_S) -> service_pb2.Job:
        with self._translated():
            return self._jobs.Get(service_pb2.JobRequest(job_id=job_id), timeout=timeout_s)

    def _steer(self, call: Callable[..., service_pb2.Job], job_id: str, timeout_s: float) -> Job:
        with self._translated():
            return Job(self, call(service_pb2.JobRequest(job_id=job_id), timeout=timeout_s))

    def _history(self, job_id: str) -> History:
        with self._translated():
            message = self._jobs.GetHistory(service_pb2.JobRequest(job_id=job_id), timeout=SEND_S)
        return History.from_message(message)

    def _download(self, job_id: str, path: Path, which: Which) -> Path:
        number = service_pb2.WhichModel.Value(f"WHICH_MODEL_{which.upper()}")
        request = service_pb2.DownloadModelRequest(job_id=job_id, which=number)
        partial = path.with_name(f".{path.name}.part")
        try:
            with self._translated(), partial.open("wb") as file:
                for piece in self._jobs.DownloadModel(request, timeout=SEND_S):
                    file.write(piece.data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _translated(self) -> "_Translated":
        return _Translated(self.address)


class _Translated:
    """Raises Lockstep's exceptions in place of gRPC's."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, grpc.RpcError):
            problem: LockstepError = translate(error, self._address)
            raise problem from None


class _Deadline:
    """A time limit over several calls; None is none."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s

    def left(self) -> float:
        """Seconds left for the next call. gRPC takes no None on every call, so no limit is a very late one."""
        return 1e8 if self._end_s is None else max(self._end_s - time.monotonic(), 0.001)

    def check(self, job_id: str) -> None:
        if self._end_s is not None and time.monotonic() > self._end_s:
            raise WaitTimeoutError(f"job {job_id} has not ended after {self._timeout_s:g} s; it goes on")


def _event(message: service_pb2.Event) -> Event:
    severity = service_pb2.Severity.Name(message.severity).removeprefix("SEVERITY_").lower()
    return Event(message.sequence, message.time.ToDatetime(tzinfo=UTC), severity, message.message)
