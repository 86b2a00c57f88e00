"""What `import lockstep` gives, and what it costs."""

import json
import subprocess
import sys
import types

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
HEAVY = ("ray", "pyarrow", "sklearn", "pandas", "scipy", "lockstep_server", "lockstep_worker")


def public(names: object) -> set[str]:
    return {name for name, value in vars(names).items() if name[0] != "_" and not isinstance(value, types.ModuleType)}


def test_all_is_the_public_surface() -> None:
    assert set(lockstep.__all__) == PUBLIC == public(lockstep)
    assert lockstep.__all__ == sorted(lockstep.__all__)


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


def test_importing_lockstep_loads_nothing_heavy() -> None:
    code = "import lockstep, json, sys; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert "numpy" in loaded
    assert [name for name in loaded if name in HEAVY or name.startswith(tuple(f"{name}." for name in HEAVY))] == []
