"""Lockstep: training of feed-forward neural networks with the same bits on any number of workers."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from lockstep.client import Client
    from lockstep.comparing import Comparison, Difference, Parting
    from lockstep.errors import (
        ClusterError,
        InvalidDataError,
        InvalidModelError,
        InvalidRequestError,
        InvalidSpecError,
        JobFailedError,
        JobStateError,
        LockstepError,
        NotFoundError,
        PermissionDeniedError,
        ServerError,
        ServerUnavailableError,
        StorageError,
        WaitTimeoutError,
    )
    from lockstep.history import History
    from lockstep.job import Job, JobState
    from lockstep.local import LocalCluster
    from lockstep.model import Model
    from lockstep.records import Checkpoint, Event, LedgerEntry
    from lockstep.verifying import Verification
    from lockstep.watching import Update
    from lockstep_proto.reader import Violation
    from lockstep_proto.v1.job_pb2 import JobSpec

__all__ = [
    "Checkpoint",
    "Client",
    "ClusterError",
    "Comparison",
    "Difference",
    "Event",
    "History",
    "InvalidDataError",
    "InvalidModelError",
    "InvalidRequestError",
    "InvalidSpecError",
    "Job",
    "JobFailedError",
    "JobSpec",
    "JobState",
    "JobStateError",
    "LedgerEntry",
    "LocalCluster",
    "LockstepError",
    "Model",
    "NotFoundError",
    "Parting",
    "PermissionDeniedError",
    "ServerError",
    "ServerUnavailableError",
    "StorageError",
    "Update",
    "Verification",
    "Violation",
    "WaitTimeoutError",
]

# A type checker reads the imports; a program loads a module when it first uses a name of it.
if not typing.TYPE_CHECKING:
    _MODULES = {name: "lockstep.errors" for name in __all__ if name.endswith("Error")} | {
        "Checkpoint": "lockstep.records",
        "Client": "lockstep.client",
        "Comparison": "lockstep.comparing",
        "Difference": "lockstep.comparing",
        "Event": "lockstep.records",
        "History": "lockstep.history",
        "Job": "lockstep.job",
        "JobSpec": "lockstep_proto.v1.job_pb2",
        "JobState": "lockstep.job",
        "LedgerEntry": "lockstep.records",
        "LocalCluster": "lockstep.local",
        "Model": "lockstep.model",
        "Parting": "lockstep.comparing",
        "Update": "lockstep.watching",
        "Verification": "lockstep.verifying",
        "Violation": "lockstep_proto.reader",
    }

    _SUBMODULES = {module.removeprefix("lockstep.") for module in _MODULES.values() if module.startswith("lockstep.")}

    def __getattr__(name: str) -> object:
        if name in _SUBMODULES:
            return importlib.import_module(f"lockstep.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
