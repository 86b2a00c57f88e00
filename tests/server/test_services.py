"""The servicers, over a real connection: what clients and the fleet see."""

import asyncio
import contextlib
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep_proto.v1 import service_pb2, service_pb2_grpc, training_pb2, training_pb2_grpc
from lockstep_server import cluster, fleet_link
from lockstep_server import uploads as uploads_module
from lockstep_server.data_service import DataService
from lockstep_server.fleet_service import FleetService
from lockstep_server.interceptor import RpcMetrics
from lockstep_server.job_service import JobService
from lockstep_server.lifecycle import State
from lockstep_server.pieces import PIECE_BYTES
from lockstep_server.status import VIOLATIONS_KEY
from tests.server.fakes import FINGERPRINT, Bench, bench, make_spec, turn, whole

Code = grpc.StatusCode


@dataclass
class Connection:
    """Stubs on a channel to a server on fakes."""

    server: Bench
    jobs: Any
    data: Any
    fleet: Any

    async def submit(self, request_id: str = "") -> service_pb2.Job:
        job: service_pb2.Job = await self.jobs.Submit(
            service_pb2.SubmitRequest(request_id=request_id, spec=make_spec())
        )
        return job


@contextlib.asynccontextmanager
async def connected(state: Path) -> AsyncIterator[Connection]:
    async with bench(state) as server:
        listening = grpc.aio.server(interceptors=[RpcMetrics(server.metrics)])
        service_pb2_grpc.add_JobServiceServicer_to_server(
            JobService(server.jobs, lambda: cluster.describe(server.directory, server.scheduler, FINGERPRINT)),
            listening,
        )
        service_pb2_grpc.add_DataServiceServicer_to_server(DataService(server.uploads), listening)
        training_pb2_grpc.add_FleetServiceServicer_to_server(FleetService(server.scheduler), listening)
        port = listening.add_insecure_port("127.0.0.1:0")
        await listening.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Connection(
                server,
                service_pb2_grpc.JobServiceStub(channel),
                service_pb2_grpc.DataServiceStub(channel),
                training_pb2_grpc.FleetServiceStub(channel),
            )
        await listening.stop(None)


def play(state: Path, scene: Callable[[Connection], Awaitable[None]]) -> None:
    async def life() -> None:
        async with connected(state) as connection:
            await scene(connection)

    asyncio.run(life())


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def put(to: Connection, content: bytes, upload_id: str = "", size: int | None = None) -> service_pb2.Upload:
    upload_id = upload_id or hashlib.sha256(content).hexdigest() + ".csv"

    async def requests() -> AsyncIterator[service_pb2.PutUploadRequest]:
        header = service_pb2.Upload(upload_id=upload_id, size_bytes=len(content) if size is None else size)
        yield service_pb2.PutUploadRequest(header=header)
        for start in range(0, len(content), PIECE_BYTES):
            yield service_pb2.PutUploadRequest(data=content[start : start + PIECE_BYTES])

    upload: service_pb2.Upload = await to.data.PutUpload(requests())
    return upload


def test_a_job_from_submission_to_its_model(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        to.server.fleet(1)
        job = await to.submit("request")
        assert job.state == State.JOB_STATE_RUNNING
        assert (await to.submit("request")).id == job.id
        assert [listed.id for listed in (await to.jobs.List(service_pb2.ListRequest())).jobs] == [job.id]
        watching = aiter(to.jobs.Watch(service_pb2.WatchRequest(job_id=job.id[:6])))
        assert (await anext(watching)).job.id == job.id
        run = await to.server.load(job.id)
        run.train(3)
        run.end(State.JOB_STATE_SUCCEEDED, message="all 2 epochs are done")
        responses = [response async for response in watching]
        assert responses[-1].job.state == State.JOB_STATE_SUCCEEDED
        history = await whole(to.jobs.GetHistory(service_pb2.JobRequest(job_id=job.id)))
        assert list(history.steps.step) == [0, 1, 2]
        ledger = [piece async for piece in to.jobs.GetLedger(service_pb2.JobRequest(job_id=job.id))]
        assert [entry.digest for piece in ledger for entry in piece.entries][1:] == [responses[-1].job.digest]
        (checkpoint,) = (await to.jobs.ListCheckpoints(service_pb2.JobRequest(job_id=job.id))).checkpoints
        assert (checkpoint.version, checkpoint.step_in_epoch, checkpoint.HasField("validation_loss")) == (3, 3, False)
        assert abs(checkpoint.time.ToSeconds() - time.time()) < 60
        pieces = to.jobs.DownloadModel(service_pb2.DownloadModelRequest(job_id=job.id))
        model = b"".join([piece.data async for piece in pieces])
        assert model == (tmp_path / "jobs" / job.id / "model.safetensors").read_bytes()
        size = sum(path.stat().st_size for path in (tmp_path / "jobs" / job.id).rglob("*.safetensors"))
        deleted = await to.jobs.Delete(service_pb2.JobRequest(job_id=job.id))
        assert deleted.freed_bytes == size > len(model)

    play(tmp_path, scene)


def test_jobs_can_be_paused_resumed_and_stopped(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        to.server.fleet(1)
        request = service_pb2.JobRequest(job_id=(await to.submit()).id)
        assert (await to.jobs.Pause(request)).state == State.JOB_STATE_PAUSED
        assert (await to.jobs.Resume(request)).state == State.JOB_STATE_RUNNING
        assert (await to.jobs.Stop(request)).state == State.JOB_STATE_STOPPED
        error = await refused(to.jobs.Pause(request))
        assert error.code() == Code.FAILED_PRECONDITION
        assert "is stopped; only a running job can be paused" in (error.details() or "")

    play(tmp_path, scene)


def test_all_violations_of_a_spec_come_in_the_trailing_metadata(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        wrong = make_spec(shards=0)
        wrong.network.layers[0].units = 0
        error = await refused(to.jobs.Submit(service_pb2.SubmitRequest(spec=wrong)))
        assert error.code() == Code.INVALID_ARGUMENT
        assert "network.layers[0].units: " in (error.details() or "")
        carried = dict(error.trailing_metadata() or ())[VIOLATIONS_KEY]
        violations = service_pb2.Violations.FromString(carried)
        assert {violation.path for violation in violations.violations} == {"shards", "network.layers[0].units"}

    play(tmp_path, scene)


@pytest.mark.parametrize("verb", ["Get", "Stop", "Pause", "Resume", "Delete"])
def test_an_unknown_job_is_not_found(tmp_path: Path, verb: str) -> None:
    async def scene(to: Connection) -> None:
        error = await refused(getattr(to.jobs, verb)(service_pb2.JobRequest(job_id="0000")))
        assert error.code() == Code.NOT_FOUND
        assert error.details() == "there is no job 0000; `lockstep list` shows those there are"

    play(tmp_path, scene)


def test_an_unknown_job_cannot_be_watched_or_downloaded_and_has_no_history(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        for stream in (
            to.jobs.Watch(service_pb2.WatchRequest(job_id="0000")),
            to.jobs.DownloadModel(service_pb2.DownloadModelRequest(job_id="0000")),
            to.jobs.GetHistory(service_pb2.JobRequest(job_id="0000")),
        ):
            assert (await refused(stream.read())).code() == Code.NOT_FOUND

    play(tmp_path, scene)


def test_a_model_that_is_not_there_yet_is_a_failed_precondition(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        job = await to.submit()
        stream = to.jobs.DownloadModel(service_pb2.DownloadModelRequest(job_id=job.id))
        error = await refused(stream.read())
        assert error.code() == Code.FAILED_PRECONDITION
        assert "it is saved when the job ends" in (error.details() or "")

    play(tmp_path, scene)


def test_a_defect_is_named_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(to: Connection) -> None:
        def broken(_: str) -> Any:
            raise KeyError("oops")

        monkeypatch.setattr(to.server.jobs, "get", broken)
        error = await refused(to.jobs.Get(service_pb2.JobRequest(job_id="0000")))
        assert error.code() == Code.INTERNAL
        assert "a defect in the server: KeyError('oops')" in (error.details() or "")

    play(tmp_path, scene)
    assert "a call failed by a defect" in caplog.text


def test_the_cluster_is_described(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        empty = await to.jobs.GetCluster(service_pb2.GetClusterRequest())
        assert not empty.fleet_attached
        assert empty.numerics == FINGERPRINT
        to.server.fleet(1)
        job = await to.submit()
        await to.submit()
        (await to.server.load(job.id)).join("w1")
        full = await to.jobs.GetCluster(service_pb2.GetClusterRequest())
        assert (full.fleet_attached, full.worker_slots, full.cpus_per_worker, full.nodes) == (True, 1, 1, 1)
        assert [(worker.worker_id, worker.job_id) for worker in full.workers] == [("w1", job.id)]
        assert full.queue_depth == 1

    play(tmp_path, scene)


def test_calls_are_measured(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        await to.submit()
        await refused(to.jobs.Get(service_pb2.JobRequest(job_id="0000")))

        def measured() -> list[tuple[Any, ...]]:
            return [call[1:3] for call in to.server.metrics.calls if call[0] == "rpc"]

        while len(measured()) < 2:  # a client has its answer a little before
            await turn()
        assert measured() == [("lockstep.v1.JobService/Submit", "OK"), ("lockstep.v1.JobService/Get", "NOT_FOUND")]

    play(tmp_path, scene)


# Uploads


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", os.urandom(2 * PIECE_BYTES + 5)])
def test_an_upload_comes_back_as_it_was_sent(tmp_path: Path, content: bytes) -> None:
    async def scene(to: Connection) -> None:
        upload = await put(to, content)
        assert upload.size_bytes == len(content)
        request = service_pb2.GetUploadRequest(upload_id=upload.upload_id)
        assert await to.data.GetUpload(request) == upload
        assert b"".join([piece.data async for piece in to.data.DownloadUpload(request)]) == content
        assert await put(to, content) == upload  # again

    play(tmp_path, scene)


def test_a_missing_upload_is_not_found(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        request = service_pb2.GetUploadRequest(upload_id="0" * 64 + ".csv")
        assert (await refused(to.data.GetUpload(request))).code() == Code.NOT_FOUND
        assert (await refused(to.data.DownloadUpload(request).read())).code() == Code.NOT_FOUND
        outside = service_pb2.GetUploadRequest(upload_id="../lockstep.db")
        assert (await refused(to.data.DownloadUpload(outside).read())).code() == Code.INVALID_ARGUMENT

    play(tmp_path, scene)


def test_an_upload_that_is_not_its_hash_is_data_loss(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        error = await refused(put(to, b"content", "0" * 64 + ".csv"))
        assert error.code() == Code.DATA_LOSS
        assert "send it again" in (error.details() or "")

    play(tmp_path, scene)


def test_a_full_disk_ends_an_upload_with_a_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(to: Connection) -> None:
        def refuse(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(uploads_module, "write_all", refuse)
            error = await refused(put(to, b"content"))
        assert error.code() == Code.RESOURCE_EXHAUSTED
        assert "the server's disk is full: cannot store upload" in (error.details() or "")
        assert os.listdir(tmp_path / "uploads") == []
        await put(to, b"content")

    play(tmp_path, scene)


def test_an_upload_without_a_header_or_too_large_is_refused(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        async def headless() -> AsyncIterator[service_pb2.PutUploadRequest]:
            yield service_pb2.PutUploadRequest(data=b"x")

        assert (await refused(to.data.PutUpload(headless()))).code() == Code.INVALID_ARGUMENT
        error = await refused(put(to, b"content", size=1 << 62))
        assert error.code() == Code.RESOURCE_EXHAUSTED

    play(tmp_path, scene)


def test_an_upload_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        call = to.data.PutUpload()
        header = service_pb2.Upload(upload_id="0" * 64 + ".csv", size_bytes=10)
        await call.write(service_pb2.PutUploadRequest(header=header))
        while not os.listdir(tmp_path / "uploads"):
            await turn()
        call.cancel()
        while os.listdir(tmp_path / "uploads"):
            await turn()

    play(tmp_path, scene)


# The fleet


def message(**kind: Any) -> training_pb2.FleetMessage:
    return training_pb2.FleetMessage(**kind)


def test_a_fleet_tells_and_is_told(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        job = await to.submit()
        stream = to.fleet.Attach()
        await stream.write(message(resources=training_pb2.FleetResources(worker_slots=2, cpus_per_worker=1)))
        (order,) = (await stream.read()).jobs
        assert (order.job_id, order.num_workers) == (job.id, 2)
        await stream.write(message(heartbeat=training_pb2.Heartbeat()))
        await stream.write(message(data_loaded=training_pb2.DataLoaded(job_id=job.id, num_rows=7)))
        run = await to.server.running(job.id)
        assert run.arguments["num_rows"] == 7
        exited = training_pb2.WorkerExited(job_id=job.id, worker_id="w1", message="killed")
        await stream.write(message(worker_exited=exited))
        while "worker w1 ended: killed" not in await to.server.events(job.id):
            await turn()
        failed = training_pb2.DataFailed(
            job_id=job.id, error_type=service_pb2.ERROR_TYPE_DATA_INVALID, message="no column y"
        )
        await stream.write(message(data_failed=failed))
        await to.server.state(job.id, State.JOB_STATE_FAILED)
        assert len((await stream.read()).jobs) == 0
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert to.server.scheduler.fleet.resources is None

    play(tmp_path, scene)


def test_a_new_fleet_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    async def scene(to: Connection) -> None:
        older = to.fleet.Attach()
        await older.write(message(resources=training_pb2.FleetResources(worker_slots=1)))
        await older.read()
        newer = to.fleet.Attach()
        await newer.write(message(resources=training_pb2.FleetResources(worker_slots=2)))
        await newer.read()
        error = await refused(older.read())
        assert error.code() == Code.ABORTED
        assert "another fleet has attached" in (error.details() or "")
        assert to.server.scheduler.fleet.worker_slots == 2
        newer.cancel()
        while to.server.scheduler.fleet.worker_slots is not None:
            await turn()

    play(tmp_path, scene)


def test_a_fleet_that_falls_silent_is_let_go_and_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_link, "FLEET_LEASE_S", 0.05)

    async def scene(to: Connection) -> None:
        hung = to.fleet.Attach()
        await hung.write(message(resources=training_pb2.FleetResources(worker_slots=1)))
        await hung.read()
        assert to.server.scheduler.fleet.worker_slots == 1
        error = await refused(hung.read())
        assert error.code() == Code.UNAVAILABLE
        assert "the fleet was silent for more than" in (error.details() or "")
        assert to.server.scheduler.fleet.worker_slots is None
        again = to.fleet.Attach()
        await again.write(message(resources=training_pb2.FleetResources(worker_slots=2)))
        await again.read()
        assert to.server.scheduler.fleet.worker_slots == 2

    play(tmp_path, scene)


def test_a_heartbeat_renews_the_lease_and_time_in_which_the_server_stood_still_does_not_count() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        attachment = fleet_link.Attachment()
        first = attachment._lease
        attachment.heard()
        assert first.cancelled()
        assert attachment._lease.when() > first.when()
        late = attachment._lease.when() + fleet_link.STOOD_STILL_S
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "time", lambda: late + 0.1)
            attachment._lease_over()
        assert not attachment.silent
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "time", attachment._lease.when)
            attachment._lease_over()
        assert attachment.silent

    asyncio.run(scene())
