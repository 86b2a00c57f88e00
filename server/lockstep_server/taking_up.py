"""Taking a job up: what it goes on or begins from, and whether there is anything left to do.

What blocks on the disk or takes long for a large network is called in a thread.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from lockstep_proto import failpoints, numerics
from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server import checkpoints, forking
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.errors import UploadNotFoundError
from lockstep_server.forking import Start
from lockstep_server.initial import initial_parameters
from lockstep_server.job_files import JobFiles
from lockstep_server.job_record import JobRecord
from lockstep_server.keeper import Keeper
from lockstep_server.ledger import LedgerWriter
from lockstep_server.lifecycle import State
from lockstep_server.progress import Plan, Progress, describe_stop, stop_reason
from lockstep_server.records import Outcome
from lockstep_server.tensor_files import TensorFileError
from lockstep_server.tools import Tools

MAX_REWINDS = 5  # to the same steps; a fault that comes back each time is not of the moment


class CannotTakeUpError(Exception):
    """A job cannot be taken up; the text is for people."""

    def __init__(self, error_type: service_pb2.ErrorType.ValueType, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def check_numerics(job: service_pb2.Job, server: NumericsFingerprint) -> None:
    """Raise CannotTakeUpError unless this server updates parameters as the one that began the job did."""
    if not (job.HasField("server_numerics") and job.reproducible):
        return
    differs = numerics.difference(job.server_numerics, server)
    if differs:
        raise CannotTakeUpError(
            service_pb2.ERROR_TYPE_NUMERICS,
            f"the server's numerics differ from those the job began with in {differs}; "
            "start the server as it was, or submit the job again",
        )


async def next_attempt(record: JobRecord, tools: Tools, files: JobFiles, keeper: Keeper, ledger: LedgerWriter) -> Start:
    """Begin a further attempt at a job whose data are loaded: from its newest checkpoint, or from its beginning.

    The number of the attempt is stored on return: no later server gives it to another. Raises CannotTakeUpError.
    """
    job = record.job
    check_numerics(job, tools.numerics)
    checkpoint = await keeper.newest()
    if checkpoint is not None:
        start = Start(checkpoint)
    else:
        start = await asyncio.to_thread(begin, record.stored().job, files.start, tools.uploads.path)
    await ledger.recall(start.checkpoint.version)
    job.attempt, job.step = job.attempt + 1, start.checkpoint.version  # told together: who watches sees it go back
    job.server_numerics.CopyFrom(tools.numerics)
    if checkpoint is None:
        job.start_version = start.checkpoint.version
        await keeper.note(start.checkpoint)
    tools.journal.job(record.stored())
    await tools.journal.try_flush()
    failpoints.hit("server.job.attempt_stored")
    return start


def begin(job: service_pb2.Job, start_file: Path, upload: Callable[[str], Path]) -> Start:
    """What the job, whose data are loaded, begins from. Raises CannotTakeUpError."""
    source = job.spec.start_from
    try:
        match source.WhichOneof("source"):
            case "job" if source.best:
                parameters = checkpoints.read_model(start_file, job.spec)
                words = f"starts from job {source.job} at its lowest validation loss: parameters alone"
                return Start(forking.version_0(parameters), words)
            case "job":
                checkpoint = checkpoints.read(start_file)
                return forking.take_over(checkpoint, checkpoints.describe(start_file).origin, job)
            case "model":
                parameters = checkpoints.read_model(upload(source.model), job.spec)
                return Start(forking.version_0(parameters), "starts from a saved model: parameters alone")
            case _:
                return Start(forking.version_0(initial_parameters(job.spec)))
    except (UploadNotFoundError, TensorFileError, OSError) as error:
        message = f"start_from.{source.WhichOneof('source')} cannot be used: {error}"
        raise CannotTakeUpError(service_pb2.ERROR_TYPE_DATA_INVALID, message) from error
    except MemoryError as error:
        message = "the server has not enough memory for the parameters; make the network smaller"
        raise CannotTakeUpError(service_pb2.ERROR_TYPE_INTERNAL, message) from error


def already_over(job: service_pb2.Job, start: Checkpoint) -> Outcome | None:
    """The end of a training that has nothing left to do, None for one that goes on."""
    progress = Progress.from_dict(start.progress)
    if progress.evaluation_due:
        return None
    reason = stop_reason(job.spec, Plan.of(job.spec, job.num_rows, job.num_validation_rows), progress, start.version)
    if reason is None:
        return None
    return Outcome(State.JOB_STATE_SUCCEEDED, reason, message=describe_stop(job.spec, progress, reason))


class Rewinds:
    """Counts how often a job has rewound without a step beyond the furthest it had reached."""

    def __init__(self) -> None:
        self._furthest = -1
        self._count = 0

    def allows(self, version: int) -> bool:
        """Whether a job that has reached this version may rewind once more."""
        if version > self._furthest:
            self._furthest, self._count = version, 0
        self._count += 1
        return self._count <= MAX_REWINDS


def taken_up(version: int, attempt: int, reached: int, away_s: float | None = None) -> str:
    """Say where a job is taken up, how far it had come, and how long the server was away."""
    words = f"taken up at version {version} (attempt {attempt})"
    if reached > version:
        words += f", which had reached {reached}"
    return words if away_s is None else f"the server was away for {away_s:.1f} s; {words}"
