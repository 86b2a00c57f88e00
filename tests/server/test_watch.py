"""Following a job: states coalesced, events complete."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockstep_proto.v1 import service_pb2
from lockstep_server.errors import JobNotFoundError
from lockstep_server.lifecycle import State
from lockstep_server.watch import MIN_INTERVAL_S, watch
from tests.server.fakes import Bench, bench, turn

Responses = AsyncIterator[service_pb2.WatchResponse]


class Gate:
    """Stands for the pause between two looks; opened by the test."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.open.wait()
        self.open.clear()


def follow(server: Bench, job_id: str, gate: Gate, after_event: int = 0) -> Responses:
    record = server.directory.find(job_id)
    return watch(record, server.journal, server.jobs.snapshot, after_event=after_event, pause=gate)


def sequences(response: service_pb2.WatchResponse) -> list[int]:
    return [event.sequence for event in response.events]


def test_states_are_coalesced_and_events_are_not(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path) as server:
            server.fleet(1)
            job_id = await server.submit()
            run = await server.load(job_id)
            gate = Gate()
            responses = follow(server, job_id, gate)
            first = await anext(responses)
            assert (first.job.step, sequences(first)) == (0, [1, 2, 3, 4])
            following = asyncio.ensure_future(anext(responses))
            await turn()
            run.train(50)
            for number in range(3):
                run.listener.event(service_pb2.SEVERITY_WARNING, f"worker {number} is lost")
            await turn()
            assert not following.done()
            assert gate.asked == [MIN_INTERVAL_S]
            gate.open.set()
            second = await following
            assert (second.job.step, sequences(second)) == (50, [5, 6, 7])
            following = asyncio.ensure_future(anext(responses))
            gate.open.set()
            await turn()
            assert not following.done()  # nothing has changed
            run.end(State.JOB_STATE_SUCCEEDED)
            last = await following
            while last.job.state != State.JOB_STATE_SUCCEEDED:  # "saving" may be seen before
                gate.open.set()
                last = await anext(responses)
            assert last.events[-1].message == "succeeded at step 50"
            with pytest.raises(StopAsyncIteration):
                await anext(responses)

    asyncio.run(scene())


def test_who_comes_back_gets_the_events_it_has_missed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path) as server:
            server.fleet(1)
            job_id = await server.submit()
            await server.load(job_id)
            assert sequences(await anext(follow(server, job_id, Gate(), after_event=2))) == [3, 4]
            await server.jobs.stop(job_id)
            ended = follow(server, job_id, Gate(), after_event=4)
            response = await anext(ended)
            assert response.job.state == State.JOB_STATE_STOPPED
            assert sequences(response) == [5]
            with pytest.raises(StopAsyncIteration):
                await anext(ended)

    asyncio.run(scene())


def test_events_of_an_earlier_server_are_replayed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path) as server:
            job_id = await server.submit()
        async with bench(tmp_path) as server:
            server.fleet(1)
            response = await anext(follow(server, job_id, Gate()))
            assert [event.message for event in response.events] == ["submitted", "running"]
            first, second = sequences(response)
            assert first == 1
            assert second > first

    asyncio.run(scene())


def test_events_that_a_crash_took_along_do_not_hide_those_of_the_next_server(tmp_path: Path) -> None:
    async def scene() -> None:
        died = Bench(tmp_path)
        died.open()
        job_id = await died.submit()
        for number in range(5):  # told, but not on disk yet
            died.directory.find(job_id).add_event(service_pb2.SEVERITY_INFO, f"lost {number}", died.now)
        told = sequences(await anext(follow(died, job_id, Gate())))[-1]
        server = Bench(tmp_path)
        server.now += 2.0
        server.open()
        server.fleet(1)
        response = await anext(follow(server, job_id, Gate(), after_event=told))
        assert [event.message for event in response.events] == ["running"]
        await server.close()
        await died.journal.close()

    asyncio.run(scene())


def test_a_job_deleted_under_a_watcher_is_said_to_be(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path) as server:
            job_id = await server.submit()
            gate = Gate()
            responses = follow(server, job_id, gate)
            await anext(responses)
            following = asyncio.ensure_future(anext(responses))
            await turn()
            await server.jobs.delete(job_id)
            gate.open.set()
            with pytest.raises(JobNotFoundError, match=f"job {job_id} was deleted"):
                await following

    asyncio.run(scene())


def test_a_watcher_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async def scene() -> None:
        async with bench(tmp_path) as server:
            job_id = await server.submit()
            responses = follow(server, job_id, Gate())
            await anext(responses)
            record = server.directory.find(job_id)
            assert len(record._watchers) == 1
            await responses.aclose()  # type: ignore[attr-defined]
            assert len(record._watchers) == 0

    asyncio.run(scene())
