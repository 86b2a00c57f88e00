"""Lockstep: training of feed-forward neural networks with the same bits on any number of workers."""

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
from lockstep_proto.spec import Violation
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
