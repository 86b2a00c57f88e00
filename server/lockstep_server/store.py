"""The store of jobs, their events, history and ledger: SQLite statements and nothing else.

A Store is used by one thread at a time; `journal` batches what is written and moves it off the event loop.
"""

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lockstep_proto import failpoints
from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server.lifecycle import Wish
from lockstep_server.records import EpochRecord, StepRecord
from lockstep_server.schema import open_database

MAX_INT = 2**63 - 1  # SQLite's


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """A row of `jobs`."""

    place: int  # order of submission, from 1
    request_id: str  # "" if the client gave none
    job: service_pb2.Job
    wish: Wish = Wish.NONE


@dataclass(kw_only=True)
class Batch:
    """Rows that are written in one transaction; a later row replaces an earlier one with its key."""

    jobs: dict[str, StoredJob] = field(default_factory=dict)
    events: dict[tuple[str, int], service_pb2.Event] = field(default_factory=dict)
    steps: dict[tuple[str, int], StepRecord] = field(default_factory=dict)
    epochs: dict[tuple[str, int], EpochRecord] = field(default_factory=dict)
    ledger: dict[tuple[str, int], service_pb2.LedgerEntry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.jobs) + len(self.events) + len(self.steps) + len(self.epochs) + len(self.ledger)

    def under(self, newer: "Batch") -> "Batch":
        """This batch with a newer one written over it."""
        return Batch(
            jobs={**self.jobs, **newer.jobs},
            events={**self.events, **newer.events},
            steps={**self.steps, **newer.steps},
            epochs={**self.epochs, **newer.epochs},
            ledger={**self.ledger, **newer.ledger},
        )

    def without(self, job_id: str) -> "Batch":
        """This batch without the rows of one job."""
        return Batch(
            jobs={key: row for key, row in self.jobs.items() if key != job_id},
            events={key: row for key, row in self.events.items() if key[0] != job_id},
            steps={key: row for key, row in self.steps.items() if key[0] != job_id},
            epochs={key: row for key, row in self.epochs.items() if key[0] != job_id},
            ledger={key: row for key, row in self.ledger.items() if key[0] != job_id},
        )


class Store:
    """The database of one server. Opening raises StartError; what follows raises sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._db = open_database(path)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def jobs(self) -> list[StoredJob]:
        """All jobs in order of place."""
        return self._jobs("ORDER BY place")

    def by_request(self, request_id: str) -> StoredJob | None:
        """The job that a request made."""
        return next(iter(self._jobs("WHERE request_id = ?", request_id)), None)

    def last_sequences(self) -> dict[str, int]:
        """The sequence number of the last event of every job that has one."""
        return dict(self._db.execute("SELECT job_id, max(sequence) FROM events GROUP BY job_id"))

    def last_steps(self) -> dict[str, int]:
        """The last recorded step of every job that has one."""
        return dict(self._db.execute("SELECT job_id, max(step) FROM steps GROUP BY job_id"))

    def events(self, job_id: str) -> list[service_pb2.Event]:
        """The events of one job in order."""
        rows = self._db.execute("SELECT event FROM events WHERE job_id = ? ORDER BY sequence", (job_id,))
        return [service_pb2.Event.FromString(event) for (event,) in rows]

    def history_length(self, job_id: str) -> int:
        """Number of the steps, or of the epochs if they are more, up to the last that is recorded."""
        (length,) = self._db.execute(
            "SELECT 1 + max((SELECT coalesce(max(step), -1) FROM steps WHERE job_id = :id),"
            " (SELECT coalesce(max(epoch), -1) FROM epochs WHERE job_id = :id))",
            {"id": job_id},
        ).fetchone()
        return int(length)

    def history(self, job_id: str, lo: int = 0, hi: int = MAX_INT) -> service_pb2.History:
        """What is recorded of the steps lo..hi−1 and of the epochs lo..hi−1 of one job."""
        history = service_pb2.History()
        _fill(
            history.steps,
            ("step", "loss", "gradient_norm", "learning_rate"),
            self._db.execute(
                "SELECT step, loss, gradient_norm, learning_rate FROM steps "
                "WHERE job_id = ? AND step >= ? AND step < ? ORDER BY step",
                (job_id, lo, hi),
            ),
        )
        _fill(
            history.epochs,
            ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "duration_s"),
            self._db.execute(
                "SELECT epoch, loss, accuracy, validation_loss, validation_accuracy, duration_s "
                "FROM epochs WHERE job_id = ? AND epoch >= ? AND epoch < ? ORDER BY epoch",
                (job_id, lo, hi),
            ),
        )
        return history

    def ledger(self, job_id: str, after: int, limit: int = MAX_INT) -> list[service_pb2.LedgerEntry]:
        """The recorded digests of one job in order of version, of versions above `after`, at most `limit`."""
        rows = self._db.execute(
            "SELECT version, digest, ends_epoch, attempt, numerics, server_numerics FROM digests "
            "JOIN attempts USING (job_id, attempt) WHERE job_id = ? AND version > ? ORDER BY version LIMIT ?",
            (job_id, after, limit),
        )
        return [
            service_pb2.LedgerEntry(
                version=version,
                digest=digest,
                ends_epoch=bool(ends_epoch),
                attempt=attempt,
                numerics=NumericsFingerprint.FromString(numerics),
                server_numerics=NumericsFingerprint.FromString(server_numerics),
            )
            for version, digest, ends_epoch, attempt, numerics, server_numerics in rows
        ]

    def write(self, batch: Batch) -> None:
        """Write all rows or, on an error, none."""
        with self._transaction():
            self._write_jobs(batch.jobs.values())
            self._db.executemany(
                "INSERT OR REPLACE INTO events VALUES (?, ?, ?)",
                [(*key, event.SerializeToString()) for key, event in batch.events.items()],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?)",
                [(*key, r.loss, r.gradient_norm, r.learning_rate) for key, r in batch.steps.items()],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO epochs VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (*key, r.loss, r.accuracy, r.validation_loss, r.validation_accuracy, r.duration_s)
                    for key, r in batch.epochs.items()
                ],
            )
            self._write_ledger(batch.ledger)
            failpoints.hit("server.store.written")
        failpoints.hit("server.store.committed")

    def delete(self, job_id: str) -> None:
        """Remove a job with its events, history and ledger."""
        with self._transaction():
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def _jobs(self, which: str, *values: str) -> list[StoredJob]:
        rows = self._db.execute(f"SELECT place, coalesce(request_id, ''), job, wish FROM jobs {which}", values)
        return [
            StoredJob(place=place, request_id=request_id, job=service_pb2.Job.FromString(job), wish=Wish(wish))
            for place, request_id, job, wish in rows
        ]

    def _write_jobs(self, jobs: Iterable[StoredJob]) -> None:
        self._db.executemany(
            "INSERT INTO jobs (place, id, request_id, job, wish) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET job = excluded.job, wish = excluded.wish",
            [(row.place, row.job.id, row.request_id or None, row.job.SerializeToString(), row.wish) for row in jobs],
        )

    def _write_ledger(self, ledger: Mapping[tuple[str, int], service_pb2.LedgerEntry]) -> None:
        attempts = {(job_id, entry.attempt): entry for (job_id, _), entry in ledger.items()}
        self._db.executemany(
            "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?)",
            [
                (*key, entry.numerics.SerializeToString(), entry.server_numerics.SerializeToString())
                for key, entry in attempts.items()
            ],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)",
            [(*key, entry.digest, entry.ends_epoch, entry.attempt) for key, entry in ledger.items()],
        )

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, error: object, *rest: object) -> None:
        # A failed COMMIT (disk full) may leave the transaction open, and SQLite may have rolled back by itself.
        try:
            if error is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _fill(
    columns: service_pb2.StepHistory | service_pb2.EpochHistory,
    names: Sequence[str],
    rows: Iterable[tuple[float | None, ...]],
) -> None:
    for name, values in zip(names, zip(*rows, strict=True), strict=False):
        getattr(columns, name).extend(math.nan if value is None else value for value in values)
