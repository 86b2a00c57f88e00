"""The server's disk: a directory of its own for every life of the server, so that a dead one can write nothing.

When a life ends, the next one gets a copy of the files as they were at that moment. When the machine went down with
it, less what was not yet safe: a file's content is safe once the file has been synced, a name once its directory has
been, a new directory once anything in it has been. SQLite syncs its files by itself, unseen from here; of its log,
what a transaction has just appended may be torn.
"""

import contextlib
import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

DATABASE = "lockstep.db"
Mark = tuple[int, int, int]  # inode, size, time of the last write


class Disk:
    """The disk of one machine. `path` is the state directory of the present life."""

    def __init__(self, root: Path, seed: str) -> None:
        self.failing: int | None = None  # the errno that writes end with now
        self.has_failed = False
        self.num_damaged = 0  # checkpoints
        self.num_losses = 0  # files and names that crashes took
        self._root = root
        self._random = random.Random(f"{seed}/disk")
        self._num_lives = 0
        self._shadow = root / "shadow"  # keeps what was removed and may come back
        self._shadow.mkdir(parents=True)
        self._contents: dict[int, Mark] = {}  # of synced files
        self._names: dict[Path, dict[str, int]] = {}  # of synced directories: name -> inode
        self._log_bytes = 0  # size of the database's log before its last transaction
        self._next_life()
        self.path.mkdir()

    def hit(self, point: str) -> None:
        """A failpoint of the server's disk is hit. Raises what the disk has to say."""
        if point == "server.store.written":
            self._log_bytes = self._size(self._log)
        if self.failing is None or not point.startswith(("server.file.", "server.store.written", "server.upload.")):
            return
        self.has_failed = True
        if point.startswith("server.store."):
            error = sqlite3.OperationalError("the disk fails")
            error.sqlite_errorname = "SQLITE_FULL" if self.failing == errno.ENOSPC else "SQLITE_IOERR"
            raise error
        raise OSError(self.failing, os.strerror(self.failing))

    def recover(self) -> None:
        """Work again."""
        self.failing = None

    def synced(self, path: Path) -> None:
        """A file or directory of the present life has been synced."""
        if path.is_dir():
            self._names[path.relative_to(self.path)] = {
                entry.name: self._keep(entry) for entry in path.iterdir() if entry.is_file() and not _is_sqlite(entry)
            }
        else:
            self._contents[path.stat().st_ino] = _mark(path)

    def crash(self, *, machine: bool, in_commit: bool = False) -> None:
        """The server ends at once; `machine` if its machine goes down, `in_commit` if a transaction was under way."""
        dead = self.path
        self._next_life()
        shutil.copytree(dead, self.path)
        if machine:
            if in_commit:
                self._tear_log()
            for directory, _, _ in os.walk(dead):
                self._lose(dead, Path(directory).relative_to(dead))
        self._contents.clear()
        self._names.clear()
        for directory, _, files in os.walk(self.path):
            for name in files:
                self.synced(Path(directory, name))
            self.synced(Path(directory))

    def damage_newest(self) -> bool:
        """Damage the newest checkpoint, as media do. Return whether there was one."""
        found = sorted(self.path.glob("jobs/*/checkpoints/*.safetensors"), key=lambda path: path.name)
        if not found:
            return False
        content = bytearray(found[-1].read_bytes())
        content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
        found[-1].write_bytes(content)
        self.num_damaged += 1
        return True

    # What a machine that goes down takes with it.

    def _lose(self, dead: Path, directory: Path) -> None:
        if not (self.path / directory).exists():
            return  # lost with the directory above it
        synced = self._names.get(directory, {})
        present = {entry.name: entry for entry in (dead / directory).iterdir() if not _is_sqlite(entry)}
        for name in sorted(synced.keys() | present.keys()):
            here, image = present.get(name), self.path / directory / name
            if here is None or (not here.is_dir() and synced.get(name) != here.stat().st_ino):
                if self._happens():
                    self._restore(image, synced.get(name))
            elif here.is_dir():
                if directory / name not in self._names and not self._has_synced(here) and self._happens():
                    shutil.rmtree(image)
                    self.num_losses += 1
            elif self._contents.get(here.stat().st_ino) != _mark(here) and self._happens():
                self._tear(image)

    def _restore(self, image: Path, inode: int | None) -> None:
        """Give a name back to what it named when its directory was last synced, if anything."""
        image.unlink(missing_ok=True)
        if inode is not None:
            shutil.copyfile(self._shadow / str(inode), image)
        self.num_losses += 1

    def _tear(self, image: Path) -> None:
        """Cut a file off somewhere, or leave zeros there."""
        size = self._size(image)
        at = self._random.randint(0, size)
        os.truncate(image, at)
        if self._happens():
            os.truncate(image, size)
        self.num_losses += 1

    def _tear_log(self) -> None:
        size = self._size(self._log)
        if size > self._log_bytes > 0 and self._happens():
            os.truncate(self._log, self._random.randint(self._log_bytes, size))
            self.num_losses += 1

    def _has_synced(self, directory: Path) -> bool:
        return any(self._contents.get(path.stat().st_ino) == _mark(path) for path in directory.rglob("*"))

    def _keep(self, entry: Path) -> int:
        inode = entry.stat().st_ino
        kept = self._shadow / str(inode)
        if not kept.exists():
            os.link(entry, kept)
        return inode

    @property
    def _log(self) -> Path:
        return self.path / f"{DATABASE}-wal"

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0

    def _happens(self) -> bool:
        return self._random.random() < 0.5

    def _next_life(self) -> None:
        self._num_lives += 1
        self.path = self._root / f"life-{self._num_lives}"


@contextlib.contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Let a disk see what is synced on it."""
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(disk.path):
            disk.synced(path)

    os.fsync = seen
    try:
        yield
    finally:
        os.fsync = fsync


def _mark(path: Path) -> Mark:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_sqlite(path: Path) -> bool:
    return path.name.startswith(DATABASE)
