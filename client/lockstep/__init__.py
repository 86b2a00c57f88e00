"""Lockstep: training of feed-forward neural networks with the same bits on any number of workers."""

from lockstep.client import Client
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
from lockstep.job import Event, Job, JobState
from lockstep.local import LocalCluster
from lockstep.model import Model
from lockstep.watching import Update
from lockstep_proto.spec import Violation
from lockstep_proto.v1.job_pb2 import JobSpec

__all__ = [
    "Client",
    "ClusterError",
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
    "LocalCluster",
    "LockstepError",
    "Model",
    "NotFoundError",
    "PermissionDeniedError",
    "ServerError",
    "ServerUnavailableError",
    "StorageError",
    "Update",
    "Violation",
    "WaitTimeoutError",
]
