"""The errors of the server that a person reads: each names the thing, the value and the way out."""

from collections.abc import Sequence

from lockstep_proto.spec import Violation


class ServerError(Exception):
    """Root of the errors that end a request; `status.CODES` gives each its gRPC status."""


class InvalidSpecError(ServerError):
    """A spec breaks rules; `violations` has all of them."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = list(violations)
        super().__init__("; ".join(f"{v.path}: {v.message}" for v in self.violations))


class InvalidRequestError(ServerError):
    """A request that no state of the server could answer."""


class JobNotFoundError(ServerError):
    """No job has this id or prefix."""


class UploadNotFoundError(ServerError):
    """The server does not keep this upload."""


class IllegalTransitionError(ServerError):
    """A job cannot go from its state to the one asked for."""


class NoModelError(ServerError):
    """A job has no such model, or not yet."""


class UploadTooLargeError(ServerError):
    """An upload is larger than the server takes."""


class DiskFullError(ServerError):
    """The server's disk has no room."""


class UploadDamagedError(ServerError):
    """The content of an upload does not have the announced size or hash."""


class StorageError(ServerError):
    """The server's disk cannot be read or written."""


class ShuttingDownError(ServerError):
    """The server is going down and takes nothing new."""


class StartError(Exception):
    """The server cannot start; the text says why and what to do."""
