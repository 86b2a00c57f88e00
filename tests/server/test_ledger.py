"""The digests of a job's versions, and what is said when a version is computed again."""

import asyncio
from pathlib import Path

import pytest

from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server import journal as journal_module
from lockstep_server import keeper
from lockstep_server.job_record import JobRecord
from lockstep_server.journal import Journal
from lockstep_server.ledger import LedgerWriter
from lockstep_server.lifecycle import State
from lockstep_server.store import Store, StoredJob
from tests.server.fakes import FINGERPRINT, Bench, FakeRun, digest_of_version, play

OTHER = NumericsFingerprint(numerics_revision=2)


async def entries(server: Bench, job_id: str) -> list[service_pb2.LedgerEntry]:
    return [entry async for piece in server.jobs.ledger(job_id) for entry in piece.entries]


async def begin(server: Bench) -> FakeRun:
    server.fleet(1)
    run = await server.load(await server.submit())
    run.join("w1")
    return run


@pytest.mark.parametrize("inline_bytes", [0, 1000])
def test_epochs_checkpoints_and_the_end_are_recorded(
    tmp_path: Path, inline_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "INLINE_BYTES", inline_bytes)

    async def scene(server: Bench) -> None:
        run = await begin(server)
        run.train(2)
        run.end_epoch()
        run.train(1)
        await run.keep()
        run.train(1)
        run.end(State.JOB_STATE_SUCCEEDED)
        await server.state(run.job_id, State.JOB_STATE_SUCCEEDED)
        found = await entries(server, run.job_id)
        begun = found.pop(0)
        assert (begun.version, begun.ends_epoch, begun.attempt) == (0, False, 1)
        assert [(entry.version, entry.digest, entry.ends_epoch) for entry in found] == [
            (2, digest_of_version(2), True),
            (3, digest_of_version(3), False),
            (4, digest_of_version(4), False),
        ]
        assert {entry.attempt for entry in found} == {1}
        assert all(entry.numerics == entry.server_numerics == FINGERPRINT for entry in found)

    play(tmp_path, scene)


def test_a_long_ledger_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LEDGER_PIECE", 2)

    async def scene(server: Bench) -> None:
        run = await begin(server)
        for _ in range(5):
            run.train(1)
            run.end_epoch()
        pieces = [piece async for piece in server.jobs.ledger(run.job_id)]
        assert [[entry.version for entry in piece.entries] for piece in pieces] == [[0, 1], [2, 3], [4, 5]]

    play(tmp_path, scene)


def test_digests_that_cannot_keep_up_do_not_heap_up_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "INLINE_BYTES", 0)
    monkeypatch.setattr(keeper, "MAX_WAITING", 2)

    async def scene(server: Bench) -> None:
        run = await begin(server)
        for _ in range(5):  # without a turn for those that wait
            run.train(1)
            run.end_epoch()
        run.end(State.JOB_STATE_SUCCEEDED)
        await server.state(run.job_id, State.JOB_STATE_SUCCEEDED)
        assert [entry.version for entry in await entries(server, run.job_id)] == [0, 1, 2, 5]

    play(tmp_path, scene)


def test_a_replay_that_has_other_bits_is_an_alarm(tmp_path: Path) -> None:
    job_ids: list[str] = []

    async def life() -> None:
        server = Bench(tmp_path)
        server.open()
        run = await begin(server)
        job_ids.append(run.job_id)
        run.train(1)
        await run.keep()
        for _ in range(2):
            run.train(1)
            run.end_epoch()
        await server.journal.close()  # killed: a checkpoint of version 1, digests of 2 and 3
        server.open()
        again = await server.running(run.job_id)
        assert again.step == 1
        again.train(1)
        again.end_epoch()
        again.train(1)
        again.end_epoch(parameters_of=7)
        (alarm,) = [event for event in await server.events(run.job_id) if "computed twice" in event]
        assert f"version 3 was computed twice with different results: digest {digest_of_version(3)[:12]}" in alarm
        assert f"in attempt 1, {digest_of_version(7)[:12]} now" in alarm
        found = await entries(server, run.job_id)
        assert [(entry.version, entry.attempt) for entry in found] == [(0, 1), (1, 1), (2, 2), (3, 2)]
        assert found[3].digest == digest_of_version(7)  # the job goes on from there
        await server.close()

    asyncio.run(life())


@pytest.mark.parametrize("numerics", [FINGERPRINT, OTHER])
@pytest.mark.parametrize("reproducible", [True, False])
def test_only_what_must_be_equal_is_compared(tmp_path: Path, numerics: NumericsFingerprint, reproducible: bool) -> None:
    async def life() -> None:
        journal = Journal(Store(tmp_path / "db"))
        job = service_pb2.Job(id="a", attempt=2, reproducible=reproducible, numerics=FINGERPRINT)
        record = JobRecord(StoredJob(place=1, request_id="", job=job))
        journal.job(record.stored())
        journal.digest("a", service_pb2.LedgerEntry(version=4, digest="11", attempt=1, numerics=numerics))
        warned: list[str] = []
        writer = LedgerWriter(record, journal, warn=warned.append)
        await writer.recall(3)
        writer.add(4, "22", ends_epoch=False)
        assert len(warned) == (numerics == FINGERPRINT and reproducible)
        await journal.close()

    asyncio.run(life())
