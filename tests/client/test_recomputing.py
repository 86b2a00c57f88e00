"""Verifying, comparing and going on from jobs, on a real cluster."""

import re
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lockstep
from lockstep_proto.spec import to_dict
from tests.client.processes import until
from tests.client.samples import ENDLESS, SPEC, Run, X, Y
from tests.client.servers import command_process, ended

pytestmark = pytest.mark.cluster

EPOCHS, STEPS = 12, 36
LONG = SPEC | {
    "name": "long",
    "epochs": EPOCHS,
    "optimizer": {"adam": {"learning_rate": 0.05}},
    "network": {
        "inputs": 4,
        "layers": [
            {"units": 6, "activation": "tanh", "dropout": 0.25},
            {"units": 3, "activation": "softmax"},
        ],
    },
    "checkpoints": {"every_steps": 5},
}
VALIDATION = (X[:9], Y[:9])


@pytest.fixture(scope="module")
def job(client: lockstep.Client) -> lockstep.Job:
    """A job of 36 steps that nobody changes."""
    return client.submit(LONG, data=(X, Y), validation=VALIDATION).wait(timeout_s=60)


@pytest.fixture
def run(run: Run, client: lockstep.Client, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LOCKSTEP_SERVER", client.address)
    return run


@pytest.fixture
def train(client: lockstep.Client) -> Any:
    """Trains a job to its end; it is deleted after the test."""
    made: list[lockstep.Job] = []

    def train(spec: Any, **given: Any) -> lockstep.Job:
        made.append(client.submit(spec, **{"data": (X, Y), "validation": VALIDATION} | given))
        return made[-1].wait(timeout_s=60)

    yield train
    for job in made:
        job.delete()


def newest(job: lockstep.Job, below: int) -> lockstep.Checkpoint:
    return [checkpoint for checkpoint in job.checkpoints() if checkpoint.version < below][-1]


# Verification


def test_a_job_is_recomputed_from_its_oldest_checkpoint_and_equal(run: Run, job: lockstep.Job) -> None:
    oldest = min(checkpoint.version for checkpoint in job.checkpoints())
    assert 0 < oldest < STEPS
    ran = run("verify", job.id)
    assert ran.code == 0, ran
    assert re.fullmatch(rf"equal: steps {oldest}\.\.{STEPS}, \d+ digests?\n", ran.out)
    assert "long-verify" in ran.err
    assert "long-verify" not in run("list").out


def test_the_whole_of_a_job_is_recomputed_if_asked_for(run: Run, job: lockstep.Job) -> None:
    ran = run("verify", job.id, "--from=0", "--format=json")
    assert ran.code == 0, ran
    told = ran.json
    assert (told["job"], told["from_step"], told["to_step"], told["equal"]) == (job.id, 0, STEPS, True)
    assert told["num_steps"] == STEPS
    assert told["num_digests"] > EPOCHS
    assert told["parting"] is None
    assert told["data"] == told["numerics"] == []


def test_a_part_of_a_job_is_recomputed_if_asked_for(job: lockstep.Job) -> None:
    start = newest(job, 33)
    found = job.verify(from_step=start.version + 1, to_step=34)
    assert found.equal
    assert (found.from_step, found.to_step, found.comparison.num_steps) == (start.version, 34, 34 - start.version)
    with pytest.raises(ValueError, match=f"to must be between 1 and {STEPS}"):
        job.verify(to_step=STEPS + 1)


@pytest.mark.parametrize(
    ("table", "column", "key", "value", "words"),
    [
        ("steps", "loss", 20, 0.5, r"step 20: loss 0\.5 and "),
        ("steps", "gradient_norm", 31, 0.5, r"step 31: gradient norm 0\.5 and "),
        ("digests", "digest", 15, "f" * 64, r"version 15: digest ffffffffffffffff… and "),
        ("digests", "digest", STEPS, "f" * 64, rf"version {STEPS}: digest ffffffffffffffff… and "),
    ],
)
def test_a_row_that_somebody_changed_is_found(
    run: Run, train: Any, state_dir: Path, table: str, column: str, key: int, value: Any, words: str
) -> None:
    job = train(LONG)
    row = "step" if table == "steps" else "version"
    with sqlite3.connect(state_dir / "lockstep.db") as database:
        changes = database.execute(
            f"UPDATE {table} SET {column} = ? WHERE job_id = ? AND {row} = ?", (value, job.id, key)
        )
        assert changes.rowcount == 1
    database.close()
    ran = run("verify", job.id, "--from=0")
    assert ran.code == 1, ran
    assert re.match("different: " + words, ran.out)
    assert run("verify", job.id, "--from=0", "--format=json").json["parting"]["step"] == key


def test_data_that_changed_in_place_are_named(run: Run, client: lockstep.Client, data_root: Path) -> None:
    rows = [",".join(map(str, [*row, label])) for row, label in zip(X.tolist(), Y, strict=True)]
    header = "a,b,c,d,label"
    (data_root / "rows.csv").write_text("\n".join([header, *rows]))
    job = client.submit(LONG | {"data": {"path": "rows.csv", "target": "label"}}).wait(timeout_s=60)
    (data_root / "rows.csv").write_text("\n".join([header, *rows[1:], rows[0]]))
    ran = run("verify", job.id, "--from=0")
    assert ran.code == 1, ran
    assert ran.out.startswith("different: step 0: loss ")
    assert f"\ntraining data: fingerprint {job.data_fingerprint[:16]}… and " in ran.out
    job.delete()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_verification_leaves_no_job(
    client: lockstep.Client, job: lockstep.Job, submit: Any, number: signal.Signals
) -> None:
    endless = submit(ENDLESS)  # has the only worker
    until(lambda: endless.refresh().state == "running")
    with command_process(client, "verify", job.id) as running:
        until(lambda: [found for found in client.list(states=["pending"]) if found.name == "long-verify"])
        running.send_signal(number)
        _, err = ended(running)
        assert running.returncode == 130
    assert "Traceback" not in err
    assert [found for found in client.list() if found.name == "long-verify"] == []


# Comparison


def test_equal_jobs_have_no_difference(run: Run, job: lockstep.Job, train: Callable[..., lockstep.Job]) -> None:
    a, b = job, train(LONG | {"name": "other", "workers": {"max": 1}})
    ran = run("diff", a.id, b.id)
    assert ran.code == 0, ran
    verdict, *differences = ran.out.splitlines()
    found = re.fullmatch(rf"no difference in {STEPS} common steps, (\d+) digests", verdict)
    assert found is not None
    assert int(found[1]) > EPOCHS
    assert differences == [
        "spec: name: long and other (has no influence on the result)",
        "spec: workers.max: 4 and 1 (has no influence on the result)",
    ]


def test_jobs_of_another_seed_and_rate_part_at_once_and_it_is_said_why(run: Run, job: lockstep.Job, train: Any) -> None:
    b = train(LONG | {"seed": 8, "optimizer": {"adam": {"learning_rate": 0.01}}})
    ran = run("diff", job.id, b.id, "--format=json")
    assert ran.code == 1
    told = ran.json
    assert (told["a"], told["b"], told["equal"]) == (job.id, b.id, False)
    assert told["parting"] == {"step": 0, "quantity": "digest"} | {key: told["parting"][key] for key in "ab"}
    assert told["spec"] == [
        {"path": "optimizer.adam.learning_rate", "a": 0.05, "b": 0.01},
        {"path": "seed", "a": 7, "b": 8},
    ]


def test_jobs_of_another_rate_part_with_the_first_update(run: Run, job: lockstep.Job, train: Any) -> None:
    b = train(LONG | {"optimizer": {"adam": {"learning_rate": 0.01}}})
    ran = run("diff", job.id, b.id)
    assert ran.code == 1
    assert re.match(
        r"different: step 1: loss \S+ and \S+\nspec: optimizer\.adam\.learning_rate: 0\.05 and 0\.01\n", ran.out
    )


# Going on from a job


def test_a_fork_with_the_same_spec_ends_with_the_bits_of_the_original(
    client: lockstep.Client, job: lockstep.Job, train: Any, run: Run
) -> None:
    start = newest(job, STEPS)
    spec = {key: value for key, value in to_dict(job.spec).items() if key != "initial_parameters"}
    fork = train(spec | {"start_from": {"job": job.id[:6], "version": start.version}}, data=None, validation=None)
    assert fork.digest == job.digest
    assert (fork.started_from_job, fork.start_version) == (job.id, start.version)
    assert fork.history.steps["step"] == list(range(start.version, STEPS))
    assert client.diff(job.id, fork.id).equal
    assert f"started from  job {job.id}, at version {start.version}\n" in re.sub(
        "from +", "from  ", run("status", fork.id).out
    )


def test_a_fork_with_another_rate_says_what_it_took_over(job: lockstep.Job, train: Any) -> None:
    start = newest(job, STEPS)
    changed = {"optimizer": {"adam": {"learning_rate": 0.01}}, "start_from": {"job": job.id, "version": start.version}}
    fork = train(LONG | changed)
    said = [event.message for event in fork.events if event.message.startswith("starts from job")]
    position = f"position (epoch {start.epoch}, step {start.step_in_epoch})"
    assert said == [
        f"starts from job {job.id} at version {start.version}: parameters, optimizer state, {position}",
    ]
    assert fork.digest != job.digest
    other_seed = train(LONG | {"seed": 8, "start_from": {"job": job.id, "version": start.version}})
    assert other_seed.start_version == 0
    assert any("not the position: seed 7 there, 8 here" in event.message for event in other_seed.events)
    assert len(other_seed.history.steps["step"]) == STEPS


def test_a_fork_of_a_saved_model_begins_with_its_parameters(
    job: lockstep.Job, train: Any, tmp_path: Path, run: Run
) -> None:
    model = job.model().save(tmp_path / "start.safetensors")
    fork = train(LONG | {"start_from": {"model": str(model)}})
    assert fork.ledger()[0].version == 0
    assert fork.ledger()[0].digest == job.digest
    assert (fork.started_from_job, fork.start_version) == ("", 0)
    assert "started from         a saved model" in run("status", fork.id).out


def test_a_fork_is_verified_like_any_job(job: lockstep.Job, train: Any) -> None:
    start = newest(job, STEPS)
    fork = train(LONG | {"epochs": EPOCHS + 2, "start_from": {"job": job.id, "version": start.version}})
    found = fork.verify(from_step=start.version)
    assert found.equal
    assert (found.from_step, found.to_step) == (start.version, STEPS + 6)


# What is kept


def test_the_checkpoints_of_a_job_are_listed(run: Run, job: lockstep.Job) -> None:
    kept = job.checkpoints()
    assert kept[-1].version == STEPS
    assert (kept[-1].epoch, kept[-1].step_in_epoch) == (EPOCHS, 0)
    assert all(checkpoint.size_bytes > 0 and checkpoint.validation_loss for checkpoint in kept)
    lines = run("checkpoints", job.id).out.splitlines()
    assert re.split(" {2,}", lines[0]) == ["version", "epoch", "step of epoch", "bytes", "time", "validation loss"]
    assert [int(line.split()[0]) for line in lines[1:]] == [checkpoint.version for checkpoint in kept]
    told = run("checkpoints", job.id, "--format=json").json
    assert [checkpoint["version"] for checkpoint in told] == [checkpoint.version for checkpoint in kept]


def test_a_job_without_checkpoints_says_so(run: Run, submit: Any) -> None:
    waiting = submit(SPEC | {"workers": {"min": 2}})
    assert run("checkpoints", waiting.id).out == f"no checkpoint of job {waiting.id[:6]} is kept\n"
    ran = run("verify", waiting.id)
    assert (ran.code, ran.err) == (2, f"lockstep: job {waiting.id} has done no step that could be verified\n")


def test_the_ledger_has_a_digest_of_every_epoch_and_of_the_end(job: lockstep.Job) -> None:
    ledger = job.ledger()
    assert {entry.version for entry in ledger if entry.ends_epoch} == set(range(3, STEPS + 1, 3))
    assert ledger[-1].digest == job.digest
    assert all(entry.numerics == job.numerics for entry in ledger if entry.version)
    assert len({entry.digest for entry in ledger}) == len(ledger)


def test_equal_data_have_equal_fingerprints(job: lockstep.Job, train: Any) -> None:
    again, fewer = train(SPEC | {"epochs": 1}), train(SPEC | {"epochs": 1}, data=(X[:-1], Y[:-1]))
    assert re.fullmatch("[0-9a-f]{64}", job.data_fingerprint)
    assert again.data_fingerprint == job.data_fingerprint != fewer.data_fingerprint
    assert again.validation_fingerprint == job.validation_fingerprint != ""
    assert train(SPEC | {"epochs": 1}, validation=None).validation_fingerprint == ""
