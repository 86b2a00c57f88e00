"""The database and the state directory: restarts, migrations, damage, a second server."""

import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server import schema
from lockstep_server.errors import StartError
from lockstep_server.lifecycle import Wish
from lockstep_server.state_dir import StateDir
from lockstep_server.store import Batch, Store, StoredJob
from tests.server.fakes import epoch_record, make_spec, step_record


def stored(place: int, job_id: str, request_id: str = "") -> StoredJob:
    job = service_pb2.Job(id=job_id, spec=make_spec(), state=service_pb2.JOB_STATE_PENDING)
    return StoredJob(place=place, request_id=request_id, job=job)


def batch(*jobs: StoredJob) -> Batch:
    return Batch(jobs={row.job.id: row for row in jobs})


def test_jobs_outlive_the_server_in_order_of_place(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.write(batch(stored(2, "bb" * 6, "request"), stored(1, "aa" * 6)))
    store.close()
    store = Store(tmp_path / "db")
    assert store.jobs() == [stored(1, "aa" * 6), stored(2, "bb" * 6, "request")]
    store.close()


def test_a_job_written_again_keeps_place_events_and_history(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    event = service_pb2.Event(sequence=1, message="submitted")
    store.write(Batch(jobs={"a": stored(1, "a")}, events={("a", 1): event}, steps={("a", 0): step_record(0)}))
    row = stored(1, "a")
    row.job.state = service_pb2.JOB_STATE_RUNNING
    store.write(batch(row))
    assert store.jobs() == [row]
    assert store.events("a") == [event]
    assert store.last_sequences() == {"a": 1}
    assert list(store.history("a").steps.step) == [0]
    store.close()


def test_replayed_steps_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    first = {("a", step): step_record(step, loss=9.0) for step in range(4)}
    store.write(Batch(jobs={"a": stored(1, "a")}, steps=first))
    store.write(Batch(steps={("a", step): step_record(step, loss=float(step)) for step in (2, 3, 4)}))
    assert list(store.history("a").steps.step) == [0, 1, 2, 3, 4]
    assert list(store.history("a").steps.loss) == [9.0, 9.0, 2.0, 3.0, 4.0]
    store.close()


def test_what_was_not_measured_stays_nan(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.write(Batch(jobs={"a": stored(1, "a")}, epochs={("a", 0): epoch_record(0, loss=0.25)}))
    epochs = store.history("a").epochs
    assert list(epochs.loss) == [0.25]
    assert math.isnan(epochs.validation_loss[0])
    store.close()


def test_deleting_a_job_deletes_its_events_and_history_and_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    for place, job_id in enumerate("ab", start=1):
        event = service_pb2.Event(sequence=1)
        store.write(
            Batch(
                jobs={job_id: stored(place, job_id)},
                events={(job_id, 1): event},
                steps={(job_id, 0): step_record(0)},
                epochs={(job_id, 0): epoch_record(0)},
                ledger={(job_id, 1): service_pb2.LedgerEntry(version=1, attempt=1)},
            ),
        )
    store.delete("a")
    assert [row.job.id for row in store.jobs()] == ["b"]
    assert store.history("a") == service_pb2.History()
    assert len(store.events("a")) == 0
    assert len(store.events("b")) == 1
    store.close()
    db = sqlite3.connect(tmp_path / "db")
    for table in ("events", "steps", "epochs", "attempts", "digests"):
        assert db.execute(f"SELECT DISTINCT job_id FROM {table}").fetchall() == [("b",)]
    db.close()


def test_a_ledger_comes_back_in_order_and_in_part(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    numerics = NumericsFingerprint(numerics_revision=1), NumericsFingerprint(numerics_revision=2)
    entries = [
        service_pb2.LedgerEntry(
            version=version,
            digest=f"{version:064x}",
            ends_epoch=version % 2 == 0,
            attempt=attempt,
            numerics=numerics[attempt - 1],
            server_numerics=numerics[0],
        )
        for version, attempt in ((9, 1), (10, 1), (11, 2), (12, 2))
    ]
    ledger = {("a", entry.version): entry for entry in reversed(entries)}
    store.write(Batch(jobs={"a": stored(1, "a")}, ledger=ledger))
    assert store.ledger("a", -1) == entries
    assert store.ledger("a", 9, 2) == entries[1:3]
    store.close()


def test_a_database_of_the_first_schema_is_migrated(tmp_path: Path) -> None:
    db = schema.open_database(tmp_path / "db", schema.MIGRATIONS[:1])
    row = stored(1, "a")
    db.execute("INSERT INTO jobs VALUES (1, 'a', NULL, ?)", (row.job.SerializeToString(),))
    db.close()
    store = Store(tmp_path / "db")
    assert store.jobs() == [row]
    wishing = StoredJob(place=1, request_id="", job=row.job, wish=Wish.STOP)
    store.write(Batch(jobs={"a": wishing}, ledger={("a", 1): service_pb2.LedgerEntry(version=1)}))
    assert store.jobs() == [wishing]
    store.close()


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    with pytest.raises(sqlite3.IntegrityError):
        store.write(Batch(jobs={"a": stored(1, "a")}, steps={("unknown", 0): step_record(0)}))
    assert store.jobs() == []
    store.write(batch(stored(1, "a")))
    store.close()


def test_writes_are_synced_and_logged_ahead(tmp_path: Path) -> None:
    db = schema.open_database(tmp_path / "db")
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    db.close()


def test_an_older_database_is_migrated_with_what_is_in_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.write(batch(stored(1, "a")))
    store.close()
    added = "ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT 'none'; CREATE INDEX by_note ON jobs (note)"
    db = schema.open_database(tmp_path / "db", (*schema.MIGRATIONS, added))
    assert db.execute("SELECT id, note FROM jobs").fetchall() == [("a", "none")]
    assert db.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS) + 1,)
    db.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    Store(tmp_path / "db").close()
    broken = "CREATE TABLE half (x); CREATE TABLE jobs (y)"
    with pytest.raises(StartError, match="already exists"):
        schema.open_database(tmp_path / "db", (*schema.MIGRATIONS, broken))
    store = Store(tmp_path / "db")
    store.write(batch(stored(1, "a")))
    store.close()


def test_a_newer_database_is_refused_by_name(tmp_path: Path) -> None:
    newer = (*schema.MIGRATIONS, "CREATE TABLE later (x)")
    schema.open_database(tmp_path / "db", newer).close()
    with pytest.raises(StartError, match=rf"{tmp_path}/db has schema version {len(newer)}.*newer lockstep-server"):
        Store(tmp_path / "db")


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "db")
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(StartError, match="is not a database of Lockstep"):
        Store(tmp_path / "db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"no database" * 1000)
    with pytest.raises(StartError, match=f"the database {tmp_path}/db cannot be used: file is not a database"):
        Store(tmp_path / "db")


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    for place in range(1, 200):
        store.write(batch(stored(place, f"{place:012x}")))
    store.close()
    content = bytearray((tmp_path / "db").read_bytes())
    content[4096 * 3 : 4096 * 6] = b"\xff" * (4096 * 3)
    (tmp_path / "db").write_bytes(content)
    with pytest.raises(StartError, match=f"the database {tmp_path}/db .*restore it or move it away"):
        Store(tmp_path / "db")


def test_a_second_server_is_told_who_holds_the_state_directory(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lockstep_server.state_dir import StateDir; "
        "from lockstep_server.errors import StartError\n"
        "try: StateDir(Path(sys.argv[1]))\n"
        "except StartError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert f"the state directory {tmp_path} is in use by another lockstep-server (pid {os.getpid()})" in said
    state.close()
    StateDir(tmp_path).close()


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=f"the state directory {tmp_path}/file/state cannot be used"):
        StateDir(tmp_path / "file" / "state")


def test_a_state_directory_knows_when_a_server_was_last_alive(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.seen(1_000_000.25)
    state.close()
    state = StateDir(tmp_path)
    assert state.last_seen_s == 1_000_000.25
    state.close()
