"""What a job is taken up from: its newest good checkpoint, or given initial parameters, on a server that fits it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lockstep_proto import numerics
from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.job_pb2 import JobSpec
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server import checkpoints
from lockstep_server.errors import UploadNotFoundError
from lockstep_server.tensor_files import TensorFileError


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


def read_initial_parameters(spec: JobSpec, upload: Callable[[str], Path]) -> npt.NDArray[Any] | None:
    """The flat vector of the model that the spec names, None if it names none. Raises CannotTakeUpError."""
    if not spec.start_from.model:
        return None
    try:
        return checkpoints.read_model(upload(spec.start_from.model), spec)
    except (UploadNotFoundError, TensorFileError, OSError) as error:
        message = f"start_from.model cannot be used: {error}"
        raise CannotTakeUpError(service_pb2.ERROR_TYPE_DATA_INVALID, message) from error
