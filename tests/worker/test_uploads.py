import hashlib
import os
import re
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from lockstep_proto import channels
from lockstep_proto.v1 import service_pb2, service_pb2_grpc
from lockstep_worker import uploads
from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.uploads import KEEP_S, fetch_upload

CONTENT = b"a,y\n" + b"1,0\n" * 1000
UPLOAD_ID = hashlib.sha256(CONTENT).hexdigest() + ".csv"


class DataService(service_pb2_grpc.DataServiceServicer):
    """Serves CONTENT under every id; the first calls end with the given status codes."""

    def __init__(self, *codes):
        self.codes = list(codes)
        self.num_calls = 0

    def DownloadUpload(self, request, context):
        self.num_calls += 1
        for lo in range(0, len(CONTENT), 700):
            if lo == 1400 and self.codes:
                context.abort(self.codes.pop(0), "no such upload")
            yield service_pb2.FilePiece(data=CONTENT[lo : lo + 700])


@pytest.fixture
def serve():
    started = []

    def start(service):
        server = grpc.server(futures.ThreadPoolExecutor(4), options=list(channels.server_options()))
        service_pb2_grpc.add_DataServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        started.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in started:
        server.stop(None).wait()


def refusal(*arguments, **keywords):
    with pytest.raises(DataError) as caught:
        fetch_upload(*arguments, **keywords)
    assert caught.value.error_type == UNAVAILABLE
    return str(caught.value)


def kept(directory):
    return {path.name for path in directory.iterdir() if path.suffix != ".lock"}


def test_an_upload_is_fetched_whole_and_kept_under_its_id_for_its_user_only(serve, tmp_path):
    path = fetch_upload(serve(DataService()), UPLOAD_ID, tmp_path / "cache")
    assert path == tmp_path / "cache" / UPLOAD_ID
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_an_upload_is_fetched_once_a_machine_even_by_tasks_side_by_side(serve, tmp_path):
    service = DataService()
    address = serve(service)
    with futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch_upload(address, UPLOAD_ID, tmp_path), range(8)))
    assert set(paths) == {tmp_path / UPLOAD_ID}
    assert service.num_calls == 1


def test_damaged_content_is_refused_and_not_kept(serve, tmp_path):
    other = "0" * 64 + ".csv"
    text = refusal(serve(DataService()), other, tmp_path)
    assert text == f"upload 000000000000.csv: arrived damaged, its SHA-256 is {UPLOAD_ID[:64]}"
    assert kept(tmp_path) == set()


def test_a_server_that_goes_away_in_the_middle_is_dialled_again(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "REDIAL_S", 0.0)
    service = DataService(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)
    assert fetch_upload(serve(service), UPLOAD_ID, tmp_path).read_bytes() == CONTENT
    assert service.num_calls == 3


def test_an_upload_that_the_server_does_not_have_is_told_in_its_words(serve, tmp_path):
    service = DataService(grpc.StatusCode.NOT_FOUND)
    text = refusal(serve(service), UPLOAD_ID, tmp_path)
    assert text == f"upload {UPLOAD_ID[:12]}.csv: cannot be fetched from the server: no such upload"
    assert kept(tmp_path) == set()


def test_a_server_that_does_not_answer_in_time_is_told(tmp_path):
    text = refusal("127.0.0.1:1", UPLOAD_ID, tmp_path, timeout_s=0.1)
    assert text.startswith(f"upload {UPLOAD_ID[:12]}.csv: cannot be fetched from the server: ")


@pytest.mark.parametrize(
    "upload_id", ["0" * 64, "../../etc/passwd.csv", "", "abc.csv", "0" * 64 + "/x.csv", "0" * 64 + ".c/../s"]
)
def test_what_is_no_id_never_becomes_a_path(tmp_path, upload_id):
    assert refusal("127.0.0.1:1", upload_id, tmp_path) == f"upload {upload_id!r}: is not the id of an upload"


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    text = refusal("127.0.0.1:1", UPLOAD_ID, tmp_path / "file" / "cache")
    assert re.fullmatch(rf"upload {UPLOAD_ID[:12]}.csv: cannot be kept in .*: Not a directory", text)


def test_a_full_disk_is_told_and_nothing_of_the_upload_stays(serve, tmp_path, monkeypatch):
    def on_a_full_disk(dir, prefix):
        path = dir / f"{prefix}part"
        path.touch()
        return os.open("/dev/full", os.O_WRONLY), str(path)

    monkeypatch.setattr(uploads.tempfile, "mkstemp", on_a_full_disk)
    text = refusal(serve(DataService()), UPLOAD_ID, tmp_path)
    assert text == f"upload {UPLOAD_ID[:12]}.csv: cannot be kept in {tmp_path}: No space left on device"
    assert kept(tmp_path) == set()


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert refusal("127.0.0.1:1", UPLOAD_ID, tmp_path) == f"{tmp_path} belongs to another user; remove it"


def test_files_that_no_job_has_used_for_long_go_when_another_comes(serve, tmp_path):
    long_ago = time.time() - KEEP_S - 60
    for name in ("old.csv", "recent.csv"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / "old.csv", (long_ago, long_ago))
    fetch_upload(serve(DataService()), UPLOAD_ID, tmp_path)
    assert kept(tmp_path) == {"recent.csv", UPLOAD_ID}


def test_a_file_that_another_task_takes_away_meanwhile_is_no_problem(serve, tmp_path, monkeypatch):
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([path / "gone", *iterdir(path)]))
    assert fetch_upload(serve(DataService()), UPLOAD_ID, tmp_path).read_bytes() == CONTENT


def test_use_keeps_a_file(serve, tmp_path):
    path = fetch_upload(serve(DataService()), UPLOAD_ID, tmp_path)
    os.utime(path, (0, 0))
    fetch_upload("127.0.0.1:1", UPLOAD_ID, tmp_path)
    assert path.stat().st_mtime > time.time() - 60


def test_a_task_that_waits_for_another_finds_its_file(serve, tmp_path):
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(DataService):
        def DownloadUpload(self, request, context):
            arrived.set()
            assert go_on.wait(30)
            yield from super().DownloadUpload(request, context)

    service = Slow()
    address = serve(service)
    with futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch_upload, address, UPLOAD_ID, tmp_path)
        assert arrived.wait(30)
        second = pool.submit(fetch_upload, address, UPLOAD_ID, tmp_path)
        go_on.set()
        assert first.result(30) == second.result(30)
    assert service.num_calls == 1
