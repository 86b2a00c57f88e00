"""What all supervisors work with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockstep_proto.v1.numerics_pb2 import NumericsFingerprint
from lockstep_server.job_files import JobFiles
from lockstep_server.journal import Journal
from lockstep_server.metrics import Metrics
from lockstep_server.uploads import Uploads

if TYPE_CHECKING:
    from lockstep_server.run import JobRun


@dataclass(frozen=True, kw_only=True)
class Tools:
    """One set for a server."""

    journal: Journal
    uploads: Uploads
    files: Callable[[str], JobFiles]
    make_run: Callable[..., "JobRun"]  # the arguments of JobRun but for its metrics and lease
    metrics: Metrics
    numerics: NumericsFingerprint  # of this server
    clock: Callable[[], float]  # seconds since 1970
