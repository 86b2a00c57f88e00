"""The ledger of one job: the digest of its parameters at every epoch's end, at every checkpoint and at its end.

A version that is computed again, after a crash or a rewind, must have the digest it had. One that has another tells of
a machine that computes wrongly. The ledger then has the newer digest, since the job goes on from there; the event that
warns of it has both.
"""

from collections.abc import Callable

from lockstep_proto.v1.service_pb2 import LedgerEntry
from lockstep_server.job_record import JobRecord
from lockstep_server.journal import Journal

_SHOWN = 12  # digits of a digest


class LedgerWriter:
    """Records the digests of one job. `warn` is told of versions that were computed twice with different results."""

    def __init__(self, record: JobRecord, journal: Journal, *, warn: Callable[[str], None]) -> None:
        self._record = record
        self._journal = journal
        self._warn = warn
        self._known: dict[int, LedgerEntry] = {}

    async def recall(self, version: int) -> None:
        """Read what was recorded of later versions than the one that the job is taken up from."""
        self._known = {entry.version: entry for entry in await self._journal.ledger_after(self._record.id, version)}

    def add(self, version: int, digest: str, *, ends_epoch: bool) -> None:
        """Record a digest."""
        job = self._record.job
        entry = LedgerEntry(
            version=version,
            digest=digest,
            ends_epoch=ends_epoch,
            attempt=job.attempt,
            numerics=job.numerics,
            server_numerics=job.server_numerics,
        )
        known = self._known.pop(version, None)
        if known is not None and job.reproducible:
            self._compare(known, entry)
        self._journal.digest(job.id, entry)

    def _compare(self, known: LedgerEntry, entry: LedgerEntry) -> None:
        alike = known.numerics == entry.numerics and known.server_numerics == entry.server_numerics
        if alike and known.digest != entry.digest:
            self._warn(
                f"version {entry.version} was computed twice with different results: digest {known.digest[:_SHOWN]} in "
                f"attempt {known.attempt}, {entry.digest[:_SHOWN]} now; a machine computes wrongly or has bad memory",
            )
