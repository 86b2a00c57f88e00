"""Keeps what a run has computed: checkpoints while it trains, its last version and its models at its end.

What takes long happens in threads beside the training; one file is written at a time.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from lockstep_proto.layout import Layout, digest
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.errors import DiskFullError, StorageError
from lockstep_server.job_files import JobFiles
from lockstep_server.job_record import JobRecord
from lockstep_server.journal import Journal
from lockstep_server.ledger import LedgerWriter
from lockstep_server.records import KeptVersion

if TYPE_CHECKING:
    from lockstep_server.run import JobRun

INLINE_BYTES = 1 << 16  # whose digest takes less time than handing it to a thread
MAX_WAITING = 4
SAVE_PATIENCE_S = 60.0  # long enough for a person, or a log's rotation, to make room
RETRY_S = 2.0

log = logging.getLogger(__name__)


class Keeper:
    """Keeps one job's.

    `warn` is told of what the disk refused, `retrying` of what it refuses now, `written` of a checkpoint's seconds and
    bytes.
    """

    def __init__(
        self,
        record: JobRecord,
        files: JobFiles,
        journal: Journal,
        *,
        warn: Callable[[str], None],
        retrying: Callable[[str], None],
        written: Callable[[float, int], None],
        ledger: LedgerWriter,
    ) -> None:
        self._record = record
        self._layout = Layout.from_spec(record.spec)
        self._files = files
        self._journal = journal
        self._warn = warn
        self._retrying = retrying
        self._written = written
        self._ledger = ledger
        self._busy = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.version = -1  # of the newest checkpoint; -1 without any
        self._failed = False  # so that a disk that stays full is named once

    async def newest(self) -> Checkpoint | None:
        """The newest good checkpoint."""
        loop = asyncio.get_running_loop()

        def damaged(message: str) -> None:
            loop.call_soon_threadsafe(self._warn, message)

        checkpoint = await asyncio.to_thread(self._files.newest_checkpoint, damaged)
        self.version = -1 if checkpoint is None else checkpoint.version
        return checkpoint

    def keep(self, run: "JobRun", kept: KeptVersion) -> None:
        """Begin to keep a version of a run, which is told when its checkpoint, if there is one, is done with.

        A digest that would have to wait behind several others is left out: each of them holds all its parameters.
        """
        if kept.checkpoint is None and kept.parameters.nbytes <= INLINE_BYTES:
            self._ledger.add(kept.version, digest(self._layout, kept.parameters), ends_epoch=kept.ends_epoch)
        elif kept.checkpoint is not None or len(self._tasks) < MAX_WAITING:
            task = asyncio.get_running_loop().create_task(self._keep(run, kept))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, run: "JobRun", kept: KeptVersion) -> None:
        try:
            found = await asyncio.to_thread(digest, self._layout, kept.parameters)
            self._ledger.add(kept.version, found, ends_epoch=kept.ends_epoch)
            if kept.checkpoint is not None:
                await self._write_beside(kept.checkpoint, found)
        except Exception as error:  # the training is none the worse for it
            log.exception("a defect in keeping a version")
            self._warn(f"a defect in Lockstep: {error!r}; the job goes on, but version {kept.version} is not kept")
        finally:
            if kept.checkpoint is not None:
                run.checkpoint_written()

    async def settled(self) -> None:
        """Return when nothing is being kept any more."""
        await asyncio.gather(*self._tasks)

    async def note(self, checkpoint: Checkpoint) -> str:
        """Record the digest of a version that no run tells of; returns it."""
        found = await asyncio.to_thread(digest, self._layout, checkpoint.parameters)
        ends_epoch = checkpoint.step_in_epoch == 0 and checkpoint.epoch > 0
        self._ledger.add(checkpoint.version, found, ends_epoch=ends_epoch)
        return found

    async def save(self, checkpoint: Checkpoint, *, models: bool, patience_s: float | None = None) -> str:
        """Keep the last version: its digest, which is returned, its checkpoint and, if wanted, the models.

        What the disk refuses is tried again until `patience_s` (default SAVE_PATIENCE_S) is over. A checkpoint that
        cannot be written then is warned of. Raises DiskFullError or StorageError if the models cannot be saved.
        """
        deadline = asyncio.get_running_loop().time() + (SAVE_PATIENCE_S if patience_s is None else patience_s)
        await self.settled()
        found = await self.note(checkpoint)
        try:
            await self._patiently(lambda: self._write(checkpoint, found), deadline)
        except (DiskFullError, StorageError) as error:
            self._warn(f"{error}; there is no checkpoint of the last version, {checkpoint.version}")
        if models:
            spec = self._record.spec
            await self._patiently(lambda: asyncio.to_thread(self._files.write_models, spec, checkpoint), deadline)
        return found

    def way_out(self, error: Exception) -> str:
        """Say what a person can do about models that could not be saved."""
        words = f"{error}; the model could not be saved for {SAVE_PATIENCE_S:g} s: "
        if self.version < 0:
            return words + "submit the job again"
        again = f'start_from = {{job = "{self._record.id}"}}'
        return words + f"to go on from its checkpoint of version {self.version}, submit it with {again}"

    async def _patiently(self, write: Callable[[], Awaitable[None]], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await write()
            except (DiskFullError, StorageError) as error:
                if loop.time() >= deadline:
                    raise
                self._retrying(f"saving: {error}; trying again for {deadline - loop.time():.0f} s")
            await asyncio.sleep(RETRY_S)

    async def _write_beside(self, checkpoint: Checkpoint, parameters_digest: str) -> None:
        """Write a checkpoint beside the training; a disk that refuses is warned of, once."""
        try:
            await self._write(checkpoint, parameters_digest)
            self._failed = False
        except (DiskFullError, StorageError) as error:
            if not self._failed:
                self._warn(f"{error}; the job goes on without a checkpoint of version {checkpoint.version}")
            self._failed = True

    async def _write(self, checkpoint: Checkpoint, parameters_digest: str) -> None:
        """Write a checkpoint if it is another than the newest."""
        async with self._busy:
            if checkpoint.version == self.version:
                return
            await self._journal.flush()  # else the history of steps that will not be repeated could be lost
            begun = time.monotonic()
            write = self._files.write_checkpoint
            num_bytes = await asyncio.to_thread(write, self._record.origin, checkpoint, parameters_digest)
            self._written(time.monotonic() - begun, num_bytes)
            self.version = checkpoint.version
