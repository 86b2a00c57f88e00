"""The exceptions of Lockstep.

LockstepError
├── InvalidSpecError (ValueError)         the spec breaks rules; all of them in .violations
├── InvalidDataError (ValueError)         arrays, frames or files that cannot be sent as data
├── InvalidModelError (ValueError)        a file that is no model, or a model of another shape
├── InvalidRequestError (ValueError)      what no server could answer: an id that is too short or not unique
├── NotFoundError (LookupError)           no such job or upload
├── JobStateError (RuntimeError)          the job is in a state in which that cannot be done, or has no such model
├── JobFailedError (RuntimeError)         the job has failed; its cause is the message
├── ServerUnavailableError (ConnectionError)  no server answers, or the connection has been closed
├── PermissionDeniedError (PermissionError)   the server does not let this client do that
├── WaitTimeoutError (TimeoutError)       what was waited for did not come in time; a job goes on
├── StorageError (OSError)                the server cannot store it: its disk is full
├── ClusterError (RuntimeError)           a local cluster cannot be started
└── ServerError (RuntimeError)            a defect of the server, or a server of another version
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc

from lockstep_proto.reader import Violation
from lockstep_proto.v1 import service_pb2

if TYPE_CHECKING:
    from lockstep.job import Job

VIOLATIONS_KEY = "lockstep-violations-bin"


class LockstepError(Exception):
    """The root of all exceptions that Lockstep raises."""


class InvalidSpecError(LockstepError, ValueError):
    """The spec breaks rules. `violations` holds all of them, each with its path; the text has one a line."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("\n".join(str(violation) for violation in violations))
        self.violations = list(violations)


class InvalidDataError(LockstepError, ValueError):
    """Arrays, frames or files that cannot be sent as data. Says which value, and why."""


class InvalidModelError(LockstepError, ValueError):
    """A file that is no model, or is damaged, or a model that does not fit."""


class InvalidRequestError(LockstepError, ValueError):
    """What no server could answer: the beginning of an id that is too short, or that several jobs have."""


class NotFoundError(LockstepError, LookupError):
    """There is no such job or upload."""


class JobStateError(LockstepError, RuntimeError):
    """The job is in a state in which that cannot be done, or it has no such model."""


class JobFailedError(LockstepError, RuntimeError):
    """The job has failed. `job` is the job, `error_type` the kind of its cause."""

    def __init__(self, job: "Job") -> None:
        super().__init__(f"job {job.id} ({job.name}) failed: {job.message}")
        self.job = job
        self.error_type = job.error_type


class ServerUnavailableError(LockstepError, ConnectionError):
    """No server answers at the address, or the connection has been closed."""


class PermissionDeniedError(LockstepError, PermissionError):
    """The server does not let this client do that."""


class WaitTimeoutError(LockstepError, TimeoutError):
    """What was waited for did not come in time. A job that was waited for goes on."""


class StorageError(LockstepError, OSError):
    """The server cannot store what was sent."""


class ClusterError(LockstepError, RuntimeError):
    """A local cluster cannot be started. Holds the end of the log that says why."""


class ServerError(LockstepError, RuntimeError):
    """A defect of the server, or a server of another version."""


_BY_CODE: dict[grpc.StatusCode, type[LockstepError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.DATA_LOSS: InvalidDataError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: JobStateError,
    grpc.StatusCode.ALREADY_EXISTS: JobStateError,
    grpc.StatusCode.ABORTED: JobStateError,
    grpc.StatusCode.DEADLINE_EXCEEDED: WaitTimeoutError,
    grpc.StatusCode.CANCELLED: ServerUnavailableError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: StorageError,
    grpc.StatusCode.UNIMPLEMENTED: ServerError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.OK: ServerError,  # no error has it
}


def translate(error: grpc.RpcError, address: str) -> LockstepError:
    """Return the Lockstep exception for what gRPC raised on a call to `address`."""
    code = error.code()
    details = str(error.details() or "")
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == VIOLATIONS_KEY:
            found = service_pb2.Violations.FromString(value).violations
            return InvalidSpecError([Violation(item.path, item.message) for item in found])
    kind = _BY_CODE[code]
    if kind is ServerUnavailableError:
        return kind(
            f"no Lockstep server answers at {address}; start one with `lockstep up` or `docker-compose up`, "
            "or name another with --server or Client(...)"
        )
    if kind is WaitTimeoutError:
        return kind(f"the server at {address} did not answer in time")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return kind(f"the server at {address} is no Lockstep server, or one of another version: {details}")
    return kind(details or code.name)
