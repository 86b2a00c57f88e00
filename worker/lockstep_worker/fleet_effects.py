"""What a fleet has done: the effects of its state machine, for a driver to carry out."""

from dataclasses import dataclass

from lockstep_proto.v1 import job_pb2, training_pb2


@dataclass(frozen=True)
class LoadData:
    """Load a job's data, and say how that went."""

    job_id: str
    spec: job_pb2.JobSpec


@dataclass(frozen=True)
class ForgetData:
    """Stop loading a job's data, and drop what there is."""

    job_id: str


@dataclass(frozen=True)
class StartWorker:
    """Start a worker for a job, in the process of a spare if one is named."""

    job_id: str
    worker_id: str
    spare: str | None = None


@dataclass(frozen=True)
class StartSpare:
    """Start a process that waits for a job."""

    name: str


@dataclass(frozen=True)
class AskToLeave:
    """Ask a worker to leave in order."""

    worker_id: str


@dataclass(frozen=True)
class KillWorker:
    """End the process of a worker or a spare, if it has not ended by itself."""

    worker_id: str


@dataclass(frozen=True)
class Tell:
    """Tell the server."""

    message: training_pb2.FleetMessage


Effect = LoadData | ForgetData | StartWorker | StartSpare | AskToLeave | KillWorker | Tell
