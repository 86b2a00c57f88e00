"""The schema of the database, its version, and how older ones are brought up to it."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from lockstep_server.errors import StartError

APPLICATION_ID = 0x4C6F636B  # "Lock": tells a Lockstep database from any other SQLite file

# MIGRATIONS[v] takes version v to v + 1; version 0 is an empty file. Released ones are never edited, only added to.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE jobs (
        place INTEGER PRIMARY KEY,               -- in the order of submission
        id TEXT NOT NULL UNIQUE,
        request_id TEXT UNIQUE,                   -- the client's; NULL if it gave none
        job BLOB NOT NULL                         -- a lockstep.v1.Job
    );
    CREATE TABLE events (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        sequence INTEGER NOT NULL,
        event BLOB NOT NULL,                      -- a lockstep.v1.Event
        PRIMARY KEY (job_id, sequence)
    ) WITHOUT ROWID;
    CREATE TABLE steps (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        loss REAL, gradient_norm REAL, learning_rate REAL,  -- SQLite keeps NaN as NULL
        PRIMARY KEY (job_id, step)
    ) WITHOUT ROWID;
    CREATE TABLE epochs (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        epoch INTEGER NOT NULL,
        loss REAL, accuracy REAL, validation_loss REAL, validation_accuracy REAL, duration_s REAL,
        PRIMARY KEY (job_id, epoch)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE jobs ADD COLUMN wish TEXT NOT NULL DEFAULT '';  -- a lifecycle.Wish
    CREATE TABLE attempts (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        attempt INTEGER NOT NULL,
        numerics BLOB NOT NULL, server_numerics BLOB NOT NULL,  -- lockstep.v1.NumericsFingerprint
        PRIMARY KEY (job_id, attempt)
    ) WITHOUT ROWID;
    CREATE TABLE digests (
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        version INTEGER NOT NULL,
        digest TEXT NOT NULL,                     -- of the parameters; SHA-256 in hexadecimal
        ends_epoch INTEGER NOT NULL,              -- 0 or 1
        attempt INTEGER NOT NULL,
        PRIMARY KEY (job_id, version)
    ) WITHOUT ROWID;
    """,
)


def open_database(path: Path, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """A connection to the database at the current version. Raises StartError, naming the file, if that cannot be.

    The connection belongs to whoever opened it and may be handed to one other thread.
    """
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            _check_health(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise StartError(f"the database {path} cannot be used: {error}; restore it or move it away") from error
    return connection


def _check_health(connection: sqlite3.Connection, path: Path) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StartError(f"the database {path} is damaged: {verdict.splitlines()[-1]}; restore it or move it away")


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (version, num_tables) != (0, 0):
        raise StartError(f"{path} is not a database of Lockstep; move it away")
    if version > len(migrations):
        raise StartError(
            f"the database {path} has schema version {version}, made by a newer lockstep-server; this one knows "
            f"versions up to {len(migrations)}: upgrade it or give another --state-dir",
        )
    for older in range(version, len(migrations)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {migrations[older]}; PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {older + 1}; COMMIT;",
        )
