"""What the server does by the clock: retention and flushes."""

import asyncio
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from lockstep_proto.v1 import service_pb2
from lockstep_server import journal as journal_module
from lockstep_server.directory import Directory
from lockstep_server.housekeeping import SWEEP_S, remove_orphans
from lockstep_server.lifecycle import State
from lockstep_server.settings import DAY_S
from lockstep_server.store import Batch
from tests.server.fakes import Bench, bench, digest_of_version, make_spec


def put(server: Bench, content: bytes) -> str:
    upload_id = hashlib.sha256(content).hexdigest() + ".csv"
    with server.uploads.receive(upload_id, len(content)) as incoming:
        incoming.write(content)
        incoming.keep()
    return upload_id


async def submit_with(server: Bench, upload_id: str) -> str:
    spec = make_spec()
    spec.data.upload = upload_id
    return (await server.jobs.submit("", spec)).id


def test_ended_jobs_go_after_their_time_and_no_others(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path, keep_finished_s=10 * DAY_S) as server:
            server.fleet(1)
            old, new, paused, running = [await server.submit() for _ in range(4)]
            for job_id in (old, new, paused):
                await server.load(job_id)
                if job_id == paused:
                    await server.jobs.pause(job_id)
                else:
                    await server.jobs.stop(job_id)
                server.now += 4 * DAY_S
            server.now -= 2 * DAY_S + 1
            await server.housekeeping.sweep()
            assert {job.id for job in server.jobs.list((), 0)} == {old, new, paused, running}
            server.now += 2
            await server.housekeeping.sweep()
            assert {job.id for job in server.jobs.list((), 0)} == {new, paused, running}
            assert old not in os.listdir(tmp_path / "jobs")

    asyncio.run(scene())


def test_uploads_go_when_no_live_job_has_needed_them_for_their_time(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path, keep_uploads_s=7 * DAY_S, keep_finished_s=1000 * DAY_S) as server:
            unused, of_ended, of_live = (put(server, content) for content in (b"1", b"2", b"3"))
            ended = await submit_with(server, of_ended)
            await submit_with(server, of_live)
            server.now += 5 * DAY_S
            await server.jobs.stop(ended)
            server.now += 3 * DAY_S
            await server.housekeeping.sweep()
            assert set(os.listdir(tmp_path / "uploads")) == {of_ended, of_live}
            assert unused not in os.listdir(tmp_path / "uploads")
            server.now += 5 * DAY_S
            await server.housekeeping.sweep()
            assert os.listdir(tmp_path / "uploads") == [of_live]

    asyncio.run(scene())


def test_sweeps_come_by_the_clock(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path, keep_uploads_s=1.0) as server:
            await server.housekeeping.tick()
            put(server, b"1")
            server.now += SWEEP_S - 1
            await server.housekeeping.tick()
            assert len(os.listdir(tmp_path / "uploads")) == 1
            server.now += 1
            await server.housekeeping.tick()
            assert len(os.listdir(tmp_path / "uploads")) == 0

    asyncio.run(scene())


def test_history_reaches_the_disk_with_every_tick(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path) as server:
            server.fleet(1)
            job_id = await server.submit()
            run = await server.load(job_id)
            run.train(3)
            assert list(server.journal._store.history(job_id).steps.step) == []
            await server.housekeeping.tick()
            assert list(server.journal._store.history(job_id).steps.step) == [0, 1, 2]

    asyncio.run(scene())


def test_files_of_jobs_that_are_gone_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "model.safetensors").touch()
    remove_orphans(tmp_path, Directory())
    assert os.listdir(tmp_path) == []
    remove_orphans(tmp_path / "none", Directory())


def test_a_database_that_cannot_be_written_is_warned_of_once_and_ends_jobs_when_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_KEPT_ROWS", 50)

    def refuse(_: Batch) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def scene() -> None:
        async with bench(tmp_path) as server:
            server.fleet(1)
            job_id = await server.submit()
            run = await server.load(job_id)
            with monkeypatch.context() as patch:
                patch.setattr(server.journal._store, "write", refuse)
                for _ in range(3):
                    run.train(10)
                    await server.housekeeping.tick()
                (warning,) = [event for event in await server.events(job_id) if "disk I/O error" in event]
                assert warning.endswith("the job goes on, with its history in memory")
                assert server.jobs.get(job_id).state == State.JOB_STATE_RUNNING
                run.train(20)
                await server.housekeeping.tick()
                job = await server.state(job_id, State.JOB_STATE_FAILED)
            assert job.error_type == service_pb2.ERROR_TYPE_STORAGE
            assert "what waits to be written does not fit into memory any longer" in job.message
            assert job.digest == digest_of_version(50)  # its model could be saved
            await server.housekeeping.tick()
            assert list(server.journal._store.history(job_id).steps.step) == list(range(50))

    asyncio.run(scene())


def test_the_server_notes_that_it_is_alive(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path) as server:
            server.now += 100
            await server.housekeeping.tick()
            assert server.last_seen_s == server.now

    asyncio.run(scene())
