"""The server's state directory: where things are in it, and its lock against a second server."""

import fcntl
import os
from pathlib import Path

from lockstep_server.errors import StartError


class StateDir:
    """A state directory held by this process until `close`. Raises StartError if another server holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StartError(
                f"the state directory {path} cannot be used: {error.strerror}; try another --state-dir"
            ) from error
        self._take_lock()
        self.last_seen_s = os.fstat(self._lock).st_mtime  # when a server was last alive here, in seconds since 1970
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def seen(self, now: float) -> None:
        """Note that the server was alive at this time, in seconds since 1970; a later one reads it as `last_seen_s`."""
        os.utime(self._lock, (now, now))

    @property
    def database(self) -> Path:
        """Jobs, events and history."""
        return self.path / "lockstep.db"

    @property
    def uploads(self) -> Path:
        """Files that clients sent."""
        return self.path / "uploads"

    @property
    def jobs(self) -> Path:
        """One directory a job: its checkpoints and models."""
        return self.path / "jobs"

    def close(self) -> None:
        """Let another server have the directory."""
        os.close(self._lock)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode().strip() or "unknown"
            os.close(self._lock)
            raise StartError(
                f"the state directory {self.path} is in use by another lockstep-server (pid {holder}); "
                "stop it or give another --state-dir",
            ) from error
