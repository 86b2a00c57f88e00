"""What can be wrong with a job's data, and with a worker."""

from lockstep_proto.v1 import service_pb2

UNAVAILABLE = service_pb2.ERROR_TYPE_DATA_UNAVAILABLE
INVALID = service_pb2.ERROR_TYPE_DATA_INVALID


class DataError(Exception):
    """The data cannot be had, or do not fit the spec. The message names file, column and row (the first row is 1)."""

    def __init__(self, message: str, error_type: service_pb2.ErrorType.ValueType = INVALID) -> None:
        super().__init__(message, error_type)  # both, so that it survives pickling
        self.message = message
        self.error_type = error_type

    def __str__(self) -> str:
        return self.message


class WorkerError(Exception):
    """A worker cannot compute. The message says what and why."""
