"""The tree of exceptions, and what becomes of every gRPC status."""

import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from lockstep import errors
from lockstep.calls import translated
from lockstep.errors import LockstepError
from lockstep_proto.v1 import service_pb2, service_pb2_grpc
from lockstep_server import status

TREE = {
    "InvalidSpecError": ValueError,
    "InvalidDataError": ValueError,
    "InvalidModelError": ValueError,
    "InvalidRequestError": ValueError,
    "NotFoundError": LookupError,
    "JobStateError": RuntimeError,
    "JobFailedError": RuntimeError,
    "ServerUnavailableError": ConnectionError,
    "PermissionDeniedError": PermissionError,
    "WaitTimeoutError": TimeoutError,
    "StorageError": OSError,
    "ClusterError": RuntimeError,
    "ServerError": RuntimeError,
}
CODES = {
    "INVALID_ARGUMENT": errors.InvalidRequestError,
    "OUT_OF_RANGE": errors.InvalidRequestError,
    "DATA_LOSS": errors.InvalidDataError,
    "NOT_FOUND": errors.NotFoundError,
    "FAILED_PRECONDITION": errors.JobStateError,
    "ALREADY_EXISTS": errors.JobStateError,
    "ABORTED": errors.JobStateError,
    "DEADLINE_EXCEEDED": errors.WaitTimeoutError,
    "CANCELLED": errors.ServerUnavailableError,
    "UNAVAILABLE": errors.ServerUnavailableError,
    "PERMISSION_DENIED": errors.PermissionDeniedError,
    "UNAUTHENTICATED": errors.PermissionDeniedError,
    "RESOURCE_EXHAUSTED": errors.StorageError,
    "UNIMPLEMENTED": errors.ServerError,
    "INTERNAL": errors.ServerError,
    "UNKNOWN": errors.ServerError,
}


@pytest.mark.parametrize(("name", "builtin"), TREE.items())
def test_each_error_is_a_lockstep_error_and_the_fitting_builtin(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert kind.__bases__ == (LockstepError, builtin)


def test_the_tree_is_drawn_whole() -> None:
    defined = {
        kind.__name__ for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    assert defined == {"LockstepError", *TREE}
    drawn = dict(re.findall(r"[├└]── (\w+) \((\w+)\)", errors.__doc__ or ""))
    assert drawn == {name: builtin.__name__ for name, builtin in TREE.items()}


class Refusing(service_pb2_grpc.JobServiceServicer):
    """Ends every Get with the status that the id names."""

    def Get(self, request: service_pb2.JobRequest, context: grpc.ServicerContext) -> service_pb2.Job:
        context.abort(getattr(grpc.StatusCode, request.job_id), "in the server's words")
        raise AssertionError


@pytest.fixture(scope="module")
def refusing() -> Any:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_JobServiceServicer_to_server(Refusing(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with grpc.insecure_channel(address) as channel:
        yield SimpleNamespace(address=address, stub=service_pb2_grpc.JobServiceStub(channel))
    server.stop(None).wait()


@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_every_status_becomes_an_error_in_the_servers_words(refusing: Any, code: str, kind: type[Exception]) -> None:
    with pytest.raises(LockstepError) as caught, translated(refusing.address):
        refusing.stub.Get(service_pb2.JobRequest(job_id=code))
    assert type(caught.value) is kind
    assert caught.value.__suppress_context__, "no gRPC traceback before it"
    if kind is errors.ServerUnavailableError:
        assert str(caught.value).startswith(f"no Lockstep server answers at {refusing.address}; start one with `lockst")
    elif kind is errors.WaitTimeoutError:
        assert str(caught.value) == f"the server at {refusing.address} did not answer in time"
    else:
        assert str(caught.value).endswith("in the server's words")


def test_there_is_no_status_without_an_error() -> None:
    assert {code.name for code in grpc.StatusCode} - {"OK"} == set(CODES)
    assert {code.name for code in status.CODES.values()} <= set(CODES)


def test_violations_come_through() -> None:
    violations = service_pb2.Violations(violations=[service_pb2.Violation(path="a.b", message="is wrong")])
    refusal = SimpleNamespace(
        code=lambda: grpc.StatusCode.INVALID_ARGUMENT,
        details=lambda: "a.b: is wrong",
        trailing_metadata=lambda: ((status.VIOLATIONS_KEY, violations.SerializeToString()),),
    )
    error = errors.translate(refusal, "host:1")  # type: ignore[arg-type]
    assert isinstance(error, errors.InvalidSpecError)
    assert [(violation.path, violation.message) for violation in error.violations] == [("a.b", "is wrong")]
    assert str(error) == "a.b: is wrong"


def test_a_status_without_words_is_named() -> None:
    silent = SimpleNamespace(
        code=lambda: grpc.StatusCode.INTERNAL, details=lambda: None, trailing_metadata=lambda: None
    )
    assert str(errors.translate(silent, "host:1")) == "INTERNAL"  # type: ignore[arg-type]
