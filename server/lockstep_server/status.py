"""How errors reach clients: one gRPC status for each, and all violations of a spec beside it."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from lockstep_proto.v1 import service_pb2
from lockstep_server import errors

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Code = grpc.StatusCode
VIOLATIONS_KEY = "lockstep-violations-bin"  # trailing metadata: a serialized lockstep.v1.Violations

CODES: dict[type[errors.ServerError], grpc.StatusCode] = {
    errors.InvalidSpecError: Code.INVALID_ARGUMENT,
    errors.InvalidRequestError: Code.INVALID_ARGUMENT,
    errors.JobNotFoundError: Code.NOT_FOUND,
    errors.UploadNotFoundError: Code.NOT_FOUND,
    errors.IllegalTransitionError: Code.FAILED_PRECONDITION,
    errors.NoModelError: Code.FAILED_PRECONDITION,
    errors.UploadTooLargeError: Code.RESOURCE_EXHAUSTED,
    errors.DiskFullError: Code.RESOURCE_EXHAUSTED,
    errors.UploadDamagedError: Code.DATA_LOSS,
    errors.StorageError: Code.INTERNAL,
    errors.ShuttingDownError: Code.UNAVAILABLE,
}


@asynccontextmanager
async def translated(context: Context) -> AsyncIterator[None]:
    """Abort the call with the status of a ServerError; anything else is a defect, logged and named as one."""
    try:
        yield
    except errors.ServerError as error:
        await context.abort(CODES[type(error)], str(error), _details(error))
    except (grpc.aio.AbortError, GeneratorExit):
        raise
    except Exception as error:
        log.exception("a call failed by a defect")
        await context.abort(Code.INTERNAL, f"a defect in the server: {error!r}; its log has more")


def _details(error: errors.ServerError) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(error, errors.InvalidSpecError):
        return ()
    violations = service_pb2.Violations(
        violations=[service_pb2.Violation(path=v.path, message=v.message) for v in error.violations],
    )
    return ((VIOLATIONS_KEY, violations.SerializeToString()),)
