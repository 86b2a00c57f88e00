"""What `import lockstep` gives, and what it costs."""

import json
import subprocess
import sys
import types

import pytest

import lockstep

PUBLIC = {
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
}
VERBS = {"submit", "get", "list", "stop", "pause", "resume", "delete", "wait", "watch", "cluster", "health", "close"}
VERBS |= {"verify", "diff"}
HEAVY = {"ray", "pyarrow", "sklearn", "pandas", "scipy", "lockstep_server", "lockstep_worker"}


def printed(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def public(names: object) -> set[str]:
    return {name for name, value in vars(names).items() if name[0] != "_" and not isinstance(value, types.ModuleType)}


def test_modules_are_attributes_whatever_was_used_before() -> None:
    program = "import lockstep; print(lockstep.errors.NotFoundError is lockstep.NotFoundError, hasattr(lockstep, 'x'))"
    assert printed(program).split() == ["True", "False"]


def test_all_is_the_public_surface() -> None:
    assert {name for name in PUBLIC if hasattr(lockstep, name)} == set(lockstep.__all__) == PUBLIC == public(lockstep)
    assert lockstep.__all__ == sorted(lockstep.__all__)


def test_the_names_are_there_before_their_modules_are() -> None:
    listed = json.loads(printed("import lockstep, json; print(json.dumps(dir(lockstep)))"))
    assert set(listed) >= PUBLIC
    assert printed("from lockstep import *; print(Client.__name__, JobSpec.__name__)") == "Client JobSpec\n"


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'lockstep' has no attribute 'Cleint'"):
        getattr(lockstep, "Cleint")  # noqa: B009  (a type checker knows)


def test_a_client_has_these_verbs() -> None:
    assert public(lockstep.Client) == VERBS


def test_a_job_has_these_attributes() -> None:
    assert public(lockstep.Job) == {
        "address", "attempt", "checkpoints", "created", "data_fingerprint", "delete", "digest", "download", "epoch",
        "error_type", "events", "finished", "history", "id", "ledger", "loss", "message", "model", "name", "num_epochs",
        "num_rows", "num_steps", "num_validation_rows", "num_workers", "numerics", "pause", "phase", "refresh",
        "remaining_s", "reproducible", "resume", "rows_per_s", "server_numerics", "spec", "start_version", "started",
        "started_from_job", "state", "step", "stop", "stop_reason", "validation_accuracy", "validation_fingerprint",
        "validation_loss", "verify", "wait",
    }  # fmt: skip


def test_everything_public_says_what_it_is() -> None:
    for name in PUBLIC - {"JobSpec"}:
        assert getattr(lockstep, name).__doc__, name
    for owner in (lockstep.Client, lockstep.Job, lockstep.Model, lockstep.LocalCluster):
        for name in public(owner):
            assert getattr(owner, name).__doc__, f"{owner.__name__}.{name}"


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import lockstep", HEAVY | {"numpy", "grpc", "google", "asyncio", "lockstep_proto"}),
        ("from lockstep import Client", HEAVY | {"numpy"}),
        ("from lockstep import *", HEAVY),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(program: str, unwanted: set[str]) -> None:
    loaded = json.loads(printed(f"import json, sys\n{program}\nprint(json.dumps(sorted(sys.modules)))"))
    assert "lockstep" in loaded
    assert {name.partition(".")[0] for name in loaded} & unwanted == set()
