"""Uploads: content-addressed, checked, whole or not at all."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from lockstep_server.errors import (
    DiskFullError,
    InvalidRequestError,
    StorageError,
    UploadDamagedError,
    UploadNotFoundError,
    UploadTooLargeError,
)
from lockstep_server.uploads import PROMISE_S, Uploads

CONTENT = b"a,b\n1,2\n"
ID = hashlib.sha256(CONTENT).hexdigest() + ".csv"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make(directory: Path, clock: Clock | None = None, max_bytes: int = 1000) -> Uploads:
    return Uploads(directory, max_bytes=max_bytes, clock=clock or Clock())


def put(uploads: Uploads, content: bytes = CONTENT, upload_id: str = "", size: int | None = None) -> int:
    upload_id = upload_id or hashlib.sha256(content).hexdigest() + ".csv"
    with uploads.receive(upload_id, len(content) if size is None else size) as incoming:
        for start in range(0, len(content), 3):
            incoming.write(content[start : start + 3])
        return incoming.keep()


def test_a_file_is_kept_under_its_hash(tmp_path: Path) -> None:
    uploads = make(tmp_path)
    assert put(uploads) == len(CONTENT)
    assert uploads.path(ID).read_bytes() == CONTENT
    assert uploads.find(ID) == len(CONTENT)
    assert os.listdir(tmp_path) == [ID]


@pytest.mark.parametrize(
    ("content", "size", "words"),
    [
        (b"other content", 13, "other content than its id says"),
        (CONTENT[:-1], len(CONTENT), "ended after 7 of 8 bytes"),
        (CONTENT + b"3", len(CONTENT), "longer than the announced 8 bytes"),
    ],
)
def test_content_that_is_not_what_was_announced_is_refused(
    tmp_path: Path,
    content: bytes,
    size: int,
    words: str,
) -> None:
    uploads = make(tmp_path)
    with pytest.raises(UploadDamagedError, match=words):
        put(uploads, content, ID, size)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "upload_id",
    [
        "",
        "../../etc/passwd",
        ID + "/..",
        "../" + ID,
        ID.upper(),
        ID.replace(".csv", ".exe"),
        ID + "\n",
        "0" * 64,
        "a.csv",
    ],
)
def test_an_id_that_is_no_hash_with_a_known_suffix_is_refused(tmp_path: Path, upload_id: str) -> None:
    uploads = make(tmp_path)
    for call in (uploads.path, uploads.find, lambda name: uploads.receive(name, 1)):
        with pytest.raises(InvalidRequestError, match="is not a SHA-256"):
            call(upload_id)
    assert uploads.free([upload_id]) == 0


def test_an_upload_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UploadNotFoundError, match=ID):
        make(tmp_path).find(ID)


def test_an_upload_over_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with pytest.raises(UploadTooLargeError, match="has 1001 bytes; the server takes up to 1000"):
        make(tmp_path).receive(ID, 1001)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(DiskFullError, match=f"the server's disk is full: cannot store upload {ID}"):
        put(make(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fails_when_synced_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="Input/output error"):
        put(make(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_write_that_takes_a_part_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:1]))
    uploads = make(tmp_path)
    put(uploads)
    assert uploads.path(ID).read_bytes() == CONTENT


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "half.part").write_bytes(b"x")
    make(tmp_path)
    assert os.listdir(tmp_path) == []


def test_unused_uploads_are_those_that_nobody_needs_or_has_used_lately(tmp_path: Path) -> None:
    clock = Clock()
    uploads = make(tmp_path, clock)
    ids = [hashlib.sha256(content).hexdigest() + ".csv" for content in (b"1", b"2", b"3")]
    for content in (b"1", b"2", b"3"):
        put(uploads, content)
    clock.now += 100
    uploads.touch([ids[0]])
    assert uploads.unused({ids[1]}, keep_s=50) == [ids[2]]
    assert set(uploads.unused({ids[1]}, keep_s=101)) == set()


def test_an_upload_a_client_was_told_of_is_not_freed_before_it_can_submit(tmp_path: Path) -> None:
    clock = Clock()
    uploads = make(tmp_path, clock)
    put(uploads)
    uploads.claim([ID])  # by a first job
    uploads.find(ID)  # a second client looks
    assert uploads.free([ID]) == 0
    clock.now += PROMISE_S
    assert uploads.free([ID]) == len(CONTENT)
    assert os.listdir(tmp_path) == []
