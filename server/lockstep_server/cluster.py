"""The state of the cluster as clients see it."""

import importlib.metadata

from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server.directory import Directory
from lockstep_server.lifecycle import State
from lockstep_server.scheduler import Scheduler


def describe(directory: Directory, scheduler: Scheduler, numerics: NumericsFingerprint) -> service_pb2.Cluster:
    """The server, its fleet, the workers that are connected, and the queue."""
    resources = scheduler.fleet.resources
    cluster = service_pb2.Cluster(
        server_version=version(),
        fleet_attached=resources is not None,
        workers=[worker for run in scheduler.runs() for worker in run.workers],
        queue_depth=sum(record.state == State.JOB_STATE_PENDING for record in directory),
        numerics=numerics,
    )
    if resources is not None:
        cluster.worker_slots = resources.worker_slots
        cluster.cpus_per_worker = resources.cpus_per_worker
        cluster.nodes = resources.nodes
    return cluster


def version() -> str:
    """Version of the installed distribution; "unknown" when run from a source tree that is not installed."""
    try:
        return importlib.metadata.version("lockstep-training")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
