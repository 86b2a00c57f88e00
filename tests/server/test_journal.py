"""Batched writes: nothing is lost when a write fails, and nothing newer is overwritten."""

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lockstep_proto.v1 import service_pb2
from lockstep_server import journal as journal_module
from lockstep_server.errors import DiskFullError, StorageError
from lockstep_server.journal import Journal
from lockstep_server.store import Batch, Store, StoredJob
from tests.server.fakes import epoch_record, step_record, turn, whole


class FlakyStore(Store):
    """Fails while it has an error to raise."""

    error: sqlite3.Error | None = None
    num_writes = 0

    def write(self, batch: Batch) -> None:
        if self.error is not None:
            raise self.error
        super().write(batch)
        self.num_writes += 1

    def delete(self, job_id: str) -> None:
        if self.error is not None:
            raise self.error
        super().delete(job_id)


def full() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    return error


def row(state: service_pb2.JobState.ValueType) -> StoredJob:
    return StoredJob(place=1, request_id="", job=service_pb2.Job(id="a", state=state))


def play(directory: Path, scene: Callable[[FlakyStore, Journal], Awaitable[None]]) -> None:
    async def life() -> None:
        store = FlakyStore(directory / "db")
        journal = Journal(store)
        await scene(store, journal)
        await journal.close()

    asyncio.run(life())


@pytest.mark.parametrize(("num_steps", "num_epochs", "num_pieces"), [(0, 0, 0), (10, 10, 1), (11, 2, 2), (3, 25, 3)])
def test_a_long_history_comes_in_pieces(
    tmp_path: Path, num_steps: int, num_epochs: int, num_pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "HISTORY_PIECE", 10)

    async def scene(_: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        for step in range(num_steps):
            journal.step("a", step_record(step))
        for epoch in range(num_epochs):
            journal.epoch("a", epoch_record(epoch))
        assert len([piece async for piece in journal.history("a")]) == num_pieces
        history = await whole(journal.history("a"))
        assert list(history.steps.step) == list(range(num_steps))
        assert list(history.epochs.epoch) == list(range(num_epochs))

    play(tmp_path, scene)


def test_rows_are_written_together(tmp_path: Path) -> None:
    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        for step in range(1000):
            journal.step("a", step_record(step))
        journal.epoch("a", epoch_record(0))
        await journal.flush()
        assert store.num_writes == 1
        await journal.flush()
        assert store.num_writes == 1
        history = await whole(journal.history("a"))
        assert len(history.steps.step) == 1000
        assert len(history.epochs.epoch) == 1

    play(tmp_path, scene)


def test_rows_that_could_not_be_written_are_written_later_under_newer_ones(tmp_path: Path) -> None:
    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        journal.step("a", step_record(0, loss=1.0))
        journal.step("a", step_record(1, loss=1.0))
        store.error = full()
        flushing = asyncio.create_task(journal.flush())
        await asyncio.sleep(0)  # it has taken its rows to the writer
        journal.job(row(service_pb2.JOB_STATE_PAUSED))
        journal.step("a", step_record(1, loss=2.0))
        with pytest.raises(DiskFullError, match="the server's disk is full"):
            await flushing
        store.error = None
        await journal.flush()
        assert [stored.job.state for stored in store.jobs()] == [service_pb2.JOB_STATE_PAUSED]
        assert list(store.history("a").steps.loss) == [1.0, 2.0]

    play(tmp_path, scene)


def test_other_errors_of_the_database_are_named(tmp_path: Path) -> None:
    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        store.error = sqlite3.OperationalError("disk I/O error")
        with pytest.raises(StorageError, match="disk I/O error"):
            await journal.flush()
        assert not await journal.try_flush()
        store.error = None
        assert await journal.try_flush()

    play(tmp_path, scene)


def test_events_can_be_read_while_the_disk_is_full(tmp_path: Path) -> None:
    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        journal.event("a", service_pb2.Event(sequence=1, message="written"))
        await journal.flush()
        store.error = full()
        journal.event("a", service_pb2.Event(sequence=2, message="not written"))
        assert [event.message for event in await journal.events("a")] == ["written", "not written"]
        store.error = None

    play(tmp_path, scene)


def test_events_that_are_being_written_are_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        await journal.flush()
        store.error = full()
        journal.event("a", service_pb2.Event(sequence=1, message="told"))
        begun, goes_on, read = threading.Event(), threading.Event(), store.events

        def slow(job_id: str) -> list[service_pb2.Event]:
            begun.set()
            goes_on.wait()
            return read(job_id)

        monkeypatch.setattr(store, "events", slow)
        events = asyncio.create_task(journal.events("a"))
        while not begun.is_set():
            await turn()
        flush = asyncio.create_task(journal.try_flush())  # has taken the rows when the reader goes on
        await turn()
        goes_on.set()
        assert [event.message for event in await events] == ["told"]
        assert not await flush
        store.error = None

    play(tmp_path, scene)


def test_what_was_to_be_written_of_a_deleted_job_is_not(tmp_path: Path) -> None:
    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        await journal.flush()
        journal.step("a", step_record(0))
        await journal.delete("a")
        await journal.flush()
        assert store.jobs() == []

    play(tmp_path, scene)


def test_trouble_is_told_while_it_lasts_and_rows_are_counted_against_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "MAX_KEPT_ROWS", 10)

    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        for step in range(20):
            journal.step("a", step_record(step))
        assert not journal.overfull  # they have yet to be written
        store.error = full()
        for _ in range(3):
            await journal.try_flush()
        assert journal.overfull
        assert "the server's disk is full" in journal.trouble
        store.error = None
        await journal.try_flush()
        assert not journal.overfull
        assert journal.trouble == ""

    play(tmp_path, scene)
    assert len([record for record in caplog.records if "rows are kept in memory" in record.message]) == 1


def test_a_job_that_cannot_be_deleted_stays_with_what_is_to_be_written_of_it(tmp_path: Path) -> None:
    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        await journal.flush()
        journal.step("a", step_record(0))
        store.error = full()
        with pytest.raises(DiskFullError):
            await journal.delete("a")
        store.error = None
        await journal.flush()
        assert list(store.history("a").steps.step) == [0]

    play(tmp_path, scene)


def test_a_journal_whose_rows_cannot_be_written_still_closes(tmp_path: Path) -> None:
    async def life() -> None:
        store = FlakyStore(tmp_path / "db")
        journal = Journal(store)
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        store.error = full()
        await journal.close()

    asyncio.run(life())


def test_many_rows_are_written_before_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_ROWS", 10)

    async def scene(store: FlakyStore, journal: Journal) -> None:
        journal.job(row(service_pb2.JOB_STATE_RUNNING))
        for step in range(10):
            journal.step("a", step_record(step))
        while store.num_writes == 0:
            await turn()
        assert len(store.history("a").steps.step) == 10

    play(tmp_path, scene)
