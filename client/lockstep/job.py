"""A job as a client sees it: what the server said last, and what can be done with it."""

import enum
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lockstep.calls import CALL_S, SEND_S
from lockstep.errors import JobFailedError
from lockstep.history import History
from lockstep.records import Checkpoint, Event, LedgerEntry
from lockstep_proto.v1 import job_pb2, numerics_pb2, service_pb2

if TYPE_CHECKING:
    from lockstep.client import Client
    from lockstep.model import Model
    from lockstep.verifying import Verification

Which = Literal["last", "best"]


class JobState(enum.StrEnum):
    """The life of a job."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED)


class Job:
    """One training run. Attributes are as of the last answer of the server; `refresh` asks again."""

    def __init__(self, client: "Client", message: service_pb2.Job) -> None:
        self._client = client
        self._message = message

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits."""
        return self._message.id

    @property
    def address(self) -> str:
        """The server that keeps it."""
        return self._client.address

    @property
    def name(self) -> str:
        """The name in its spec."""
        return self._message.spec.name

    @property
    def spec(self) -> job_pb2.JobSpec:
        """Its spec, with the defaults filled in."""
        return self._message.spec

    @property
    def state(self) -> JobState:
        """Where in its life it is."""
        return JobState(service_pb2.JobState.Name(self._message.state).removeprefix("JOB_STATE_").lower())

    @property
    def phase(self) -> str:
        """What it is doing, in words."""
        return self._message.phase

    @property
    def message(self) -> str:
        """Why it failed, or why it ended."""
        return self._message.message

    @property
    def error_type(self) -> str:
        """Why it failed: "data_invalid", "not_finite", ...; empty if it did not."""
        name = service_pb2.ErrorType.Name(self._message.error_type).removeprefix("ERROR_TYPE_").lower()
        return "" if name == "unspecified" else name

    @property
    def stop_reason(self) -> str:
        """The rule that ended it: "epochs", "gradient_norm", ...; empty before."""
        name = service_pb2.StopReason.Name(self._message.stop_reason).removeprefix("STOP_REASON_").lower()
        return "" if name == "unspecified" else name

    @property
    def step(self) -> int:
        """Steps done: the version of its parameters."""
        return self._message.step

    @property
    def num_steps(self) -> int:
        """Steps there will be; 0 until the data are loaded."""
        return self._message.num_steps

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._message.epoch

    @property
    def num_epochs(self) -> int:
        """Epochs there will be; 0 until the data are loaded."""
        return self._message.num_epochs

    @property
    def loss(self) -> float | None:
        """Training loss of the last step."""
        return self._message.loss if self._message.HasField("loss") else None

    @property
    def validation_loss(self) -> float | None:
        """Loss of the last evaluation."""
        return self._message.validation_loss if self._message.HasField("validation_loss") else None

    @property
    def validation_accuracy(self) -> float | None:
        """Accuracy of the last evaluation, for classifiers."""
        return self._message.validation_accuracy if self._message.HasField("validation_accuracy") else None

    @property
    def rows_per_s(self) -> float:
        """Rows a second, lately."""
        return self._message.rows_per_s

    @property
    def num_workers(self) -> int:
        """Workers that compute for it now."""
        return self._message.num_workers

    @property
    def remaining_s(self) -> float | None:
        """Seconds to its end at the present speed, where known."""
        return self._message.remaining_s if self._message.HasField("remaining_s") else None

    @property
    def digest(self) -> str:
        """SHA-256 of its parameters, in hexadecimal; empty until it has ended."""
        return self._message.digest

    @property
    def reproducible(self) -> bool:
        """Whether its result is a function of its spec and data alone."""
        return self._message.reproducible

    @property
    def numerics(self) -> numerics_pb2.NumericsFingerprint:
        """The numerics fingerprint of its workers."""
        return self._message.numerics

    @property
    def server_numerics(self) -> numerics_pb2.NumericsFingerprint:
        """The numerics fingerprint of the server that updated its parameters."""
        return self._message.server_numerics

    @property
    def created(self) -> datetime:
        """When it was submitted, in UTC."""
        return self._message.created.ToDatetime(tzinfo=UTC)

    @property
    def started(self) -> datetime | None:
        """When it first ran, in UTC; None before."""
        return self._time("started")

    @property
    def finished(self) -> datetime | None:
        """When it ended, in UTC; None before."""
        return self._time("finished")

    @property
    def attempt(self) -> int:
        """How often the server has taken it up."""
        return self._message.attempt

    @property
    def start_version(self) -> int:
        """The version it began at: 0, or that of the checkpoint whose place in the training it took over."""
        return self._message.start_version

    @property
    def started_from_job(self) -> str:
        """Id of the job that it started from; empty if it began afresh or from a saved model."""
        return self._message.started_from_job

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the training data, in hexadecimal: the same for the same rows in as many shards."""
        return self._message.data_fingerprint

    @property
    def validation_fingerprint(self) -> str:
        """Fingerprint of the validation data; empty without any."""
        return self._message.validation_fingerprint

    @property
    def num_rows(self) -> int:
        """Rows of training data; 0 until the data are loaded."""
        return self._message.num_rows

    @property
    def num_validation_rows(self) -> int:
        """Rows of validation data."""
        return self._message.num_validation_rows

    @property
    def events(self) -> list[Event]:
        """What has happened to it, oldest first; asks the server."""
        return list(self._client._events(self.id))

    @property
    def history(self) -> History:
        """The numbers recorded so far, by step and by epoch; asks the server."""
        return self._client._history(self.id)

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that are kept of it, oldest first: what other jobs can start from."""
        return list(self._client._checkpoints(self.id))

    def ledger(self) -> list[LedgerEntry]:
        """The digests of its parameters at every epoch and checkpoint, by version."""
        return list(self._client._ledger(self.id))

    def verify(
        self,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        progress: bool = False,
        timeout_s: float | None = None,
    ) -> "Verification":
        """Recompute a range of its steps and compare them with what is recorded; see Client.verify."""
        from lockstep.interrupts import held
        from lockstep.verifying import verify

        with held() as signals:
            signals.run(self.refresh)
            return verify(
                self._client, self, from_step=from_step, to_step=to_step, progress=progress, timeout_s=timeout_s
            )

    def refresh(self, *, timeout_s: float = CALL_S) -> "Job":
        """Ask the server how the job stands now."""
        return self._take(self._client.get(self.id, timeout_s=timeout_s))

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> "Job":
        """Wait until the job has ended. A job that a person stopped has ended, too.

        `progress` shows it while it trains. Ctrl-C ends the waiting, not the job. Raises JobFailedError with the
        cause if it failed, and WaitTimeoutError after `timeout_s`. A server that goes away is dialled again.
        """
        from lockstep.progress import follow

        follow(self, progress=progress, timeout_s=timeout_s)
        if self.state is JobState.FAILED:
            raise JobFailedError(self)
        return self

    def model(self, which: Which = "last", *, timeout_s: float = SEND_S) -> "Model":
        """Return its last model, or the one with the lowest validation loss ("best"). Raises JobStateError."""
        import tempfile

        from lockstep.model import Model

        with tempfile.TemporaryDirectory() as directory:
            return Model.load(self.download(Path(directory) / "model.safetensors", which=which, timeout_s=timeout_s))

    def download(self, path: "str | Path", *, which: Which = "last", timeout_s: float = SEND_S) -> Path:
        """Write its model to a safetensors file. Raises JobStateError if it has no such model, or not yet."""
        return self._client._download(self.id, Path(path), which, timeout_s)

    def stop(self, *, timeout_s: float = CALL_S) -> "Job":
        """End it between two versions; it keeps its model."""
        return self._take(self._client.stop(self.id, timeout_s=timeout_s))

    def pause(self, *, timeout_s: float = CALL_S) -> "Job":
        """Pause it between two versions; its workers are free for others."""
        return self._take(self._client.pause(self.id, timeout_s=timeout_s))

    def resume(self, *, timeout_s: float = CALL_S) -> "Job":
        """Take it up again where it was paused."""
        return self._take(self._client.resume(self.id, timeout_s=timeout_s))

    def delete(self, *, timeout_s: float = CALL_S) -> int:
        """Remove it with its files, stopping it first if it runs. Return the bytes given back."""
        return self._client.delete(self.id, timeout_s=timeout_s)

    def _take(self, newer: "Job") -> "Job":
        self._message = newer._message
        return self

    def _time(self, field: str) -> datetime | None:
        if not self._message.HasField(field):  # type: ignore[arg-type]
            return None
        time: datetime = getattr(self._message, field).ToDatetime(tzinfo=UTC)
        return time

    def __repr__(self) -> str:
        loss = "" if self.loss is None else f" loss={self.loss:.4g}"
        return f"<Job {self.id} {self.name!r} {self.state} step {self.step}/{self.num_steps}{loss}>"
