"""Keeps what a run has computed: checkpoints while it trains, its last version and its models at its end.

What takes long happens in threads beside the training; one file is written at a time.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockstep_proto.layout import Layout, digest
from lockstep_server.checkpoints import Checkpoint, Origin
from lockstep_server.errors import DiskFullError, StorageError
from lockstep_server.job_files import JobFiles
from lockstep_server.journal import Journal
from lockstep_server.ledger import LedgerWriter
from lockstep_server.records import KeptVersion

if TYPE_CHECKING:
    from lockstep_server.run import JobRun

INLINE_BYTES = 1 << 16  # whose digest takes less time than handing it to a thread
MAX_WAITING = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedModel:
    """The last model of a job."""

    version: int
    digest: str  # SHA-256 in hexadecimal


class Keeper:
    """Keeps one job's. `warn` is told of what the disk refused, `written` of a checkpoint's seconds and bytes."""

    def __init__(
        self,
        origin: Callable[[], Origin],
        files: JobFiles,
        journal: Journal,
        *,
        warn: Callable[[str], None],
        written: Callable[[float, int], None],
        ledger: LedgerWriter,
    ) -> None:
        self._origin = origin
        self._files = files
        self._journal = journal
        self._warn = warn
        self._written = written
        self._ledger = ledger
        self._busy = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
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

    def keep(self, run: "JobRun", kept: KeptVersion) -> None:
        """Begin to keep a version of a run, which is told when its checkpoint, if there is one, is done with.

        A digest that would have to wait behind several others is left out: each of them holds all its parameters.
        """
        if kept.checkpoint is None and _num_bytes(kept) <= INLINE_BYTES:
            self._ledger.add(kept.version, kept.parameters.digest(), ends_epoch=kept.ends_epoch)
        elif kept.checkpoint is not None or len(self._tasks) < MAX_WAITING:
            task = asyncio.get_running_loop().create_task(self._keep(run, kept))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, run: "JobRun", kept: KeptVersion) -> None:
        try:
            digest = await asyncio.to_thread(kept.parameters.digest)
            self._ledger.add(kept.version, digest, ends_epoch=kept.ends_epoch)
            if kept.checkpoint is not None:
                await self.write_checkpoint(kept.checkpoint, digest)
        except Exception as error:  # the training is none the worse for it
            log.exception("a defect in keeping a version")
            self._warn(f"a defect in Lockstep: {error!r}; the job goes on, but version {kept.version} is not kept")
        finally:
            if kept.checkpoint is not None:
                run.checkpoint_written()

    async def write_checkpoint(self, checkpoint: Checkpoint, parameters_digest: str) -> None:
        """Write a checkpoint if it is newer than what was written; a disk that refuses is warned of."""
        async with self._busy:
            if checkpoint.version == self._version:
                return
            await self._journal.try_flush()  # else the history of steps that will not be repeated could be lost
            begun = time.monotonic()
            write = self._files.write_checkpoint
            try:
                num_bytes = await asyncio.to_thread(write, self._origin(), checkpoint, parameters_digest)
            except (DiskFullError, StorageError) as error:
                if not self._failed:
                    self._warn(f"{error}; the job goes on without a checkpoint of version {checkpoint.version}")
                self._failed = True
            else:
                self._written(time.monotonic() - begun, num_bytes)
                self._version = checkpoint.version
                self._failed = False

    async def write_last(self, checkpoint: Checkpoint) -> SavedModel:
        """Record the digest of the last version, and write its checkpoint."""
        await asyncio.gather(*self._tasks)
        layout = Layout.from_spec(self._origin().spec)
        saved = SavedModel(checkpoint.version, await asyncio.to_thread(digest, layout, checkpoint.parameters))
        ends_epoch = checkpoint.step_in_epoch == 0 and checkpoint.epoch > 0
        self._ledger.add(saved.version, saved.digest, ends_epoch=ends_epoch)
        await self.write_checkpoint(checkpoint, saved.digest)
        return saved

    async def write_models(self, checkpoint: Checkpoint) -> None:
        """Save the models of the last version. Raises DiskFullError or StorageError."""
        async with self._busy:
            await asyncio.to_thread(self._files.write_models, self._origin().spec, checkpoint)


def _num_bytes(kept: KeptVersion) -> int:
    return kept.parameters.layout.num_parameters * kept.parameters.layout.dtype.itemsize
