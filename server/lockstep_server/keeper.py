"""Keeps what a run has computed: checkpoints while it trains, its models at its end. One file at a time."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockstep_proto.v1.job_pb2 import JobSpec
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.errors import DiskFullError, StorageError
from lockstep_server.job_files import JobFiles
from lockstep_server.journal import Journal

if TYPE_CHECKING:
    from lockstep_server.run import JobRun


@dataclass(frozen=True)
class SavedModel:
    """The last model of a job."""

    version: int
    digest: str  # SHA-256 in hexadecimal


class Keeper:
    """Keeps one job's. `warn` is told of what the disk refused, `written` of a checkpoint's seconds and bytes."""

    def __init__(
        self,
        spec: JobSpec,
        files: JobFiles,
        journal: Journal,
        *,
        warn: Callable[[str], None],
        written: Callable[[float, int], None],
    ) -> None:
        self._spec = spec
        self._files = files
        self._journal = journal
        self._warn = warn
        self._written = written
        self._busy = asyncio.Lock()
        self._version = -1  # of the newest checkpoint
        self._failed = False  # so that a disk that stays full is named once

    async def newest(self) -> Checkpoint | None:
        """The newest good checkpoint."""
        loop = asyncio.get_running_loop()

        def damaged(message: str) -> None:
            loop.call_soon_threadsafe(self._warn, message)

        checkpoint = await asyncio.to_thread(self._files.newest_checkpoint, damaged)
        self._version = -1 if checkpoint is None else checkpoint.version
        return checkpoint

    async def write_checkpoint(self, run: "JobRun") -> None:
        """Write the last whole version if it is newer than what was written; a disk that refuses is warned of."""
        async with self._busy:
            if run.step == self._version:
                return
            checkpoint = run.checkpoint()
            await self._journal.try_flush()  # else the history of steps that will not be repeated could be lost
            begun = time.monotonic()
            try:
                num_bytes = await asyncio.to_thread(self._files.write_checkpoint, self._spec, checkpoint)
            except (DiskFullError, StorageError) as error:
                if not self._failed:
                    self._warn(f"{error}; the job goes on without a checkpoint of version {checkpoint.version}")
                self._failed = True
            else:
                self._written(time.monotonic() - begun, num_bytes)
                self._version = checkpoint.version
                self._failed = False

    async def write_models(self, run: "JobRun | None") -> SavedModel | None:
        """Save the models of the last whole version, if there is one.

        Raises DiskFullError or StorageError.
        """
        async with self._busy:
            checkpoint = run.checkpoint() if run is not None else await self.newest()
            if checkpoint is None:
                return None
            digest = await asyncio.to_thread(self._files.write_models, self._spec, checkpoint)
            return SavedModel(checkpoint.version, digest)
