"""Loads a job's data by Ray tasks: one Ray object a shard, which Ray can rebuild from its task.

Tasks ask for no CPU, since the actors hold them. What is wrong with the data comes back as a value, never as a
traceback.
"""

import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from lockstep_proto import failpoints
from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_worker.dataset import Dataset
from lockstep_worker.describe import describe
from lockstep_worker.errors import UNAVAILABLE, DataError
from lockstep_worker.fingerprint import fingerprint_data, fingerprint_shard
from lockstep_worker.ray_errors import in_words
from lockstep_worker.shard import Shard
from lockstep_worker.sources import find_files
from lockstep_worker.sources import label as file_label
from lockstep_worker.uploads import cache_dir, fetch_upload
from lockstep_worker.uploads import short_name as upload_name

RETRIES = 3  # of a task whose process or machine was lost
MEMORY_PART = 4  # a task asks for at most this part of a node's memory, so that several fit and none waits forever

Post = Callable[[Callable[[], None]], None]  # has a call made in the fleet's own thread


@dataclass(frozen=True)
class Place:
    """Where a job's data are, for a task on any machine."""

    spec: bytes  # an encoded JobSpec
    training: bool
    server: str
    roots: tuple[str, ...]

    def files(self) -> list[tuple[Path, str]]:
        """Return (path, label) of the files, which are then on this machine. Raises DataError."""
        data = self.data
        if data.WhichOneof("source") == "upload":
            what = "training" if self.training else "validation"
            label = f"uploaded {what} data ({upload_name(data.upload)})"
            return [(fetch_upload(self.server, data.upload, cache_dir()), label)]
        roots = [Path(root) for root in self.roots]
        return [(path, file_label(path, roots)) for path in find_files(data.path, roots)]

    @property
    def data(self) -> job_pb2.Data:
        """The part of the spec that is meant."""
        spec = job_pb2.JobSpec.FromString(self.spec)
        return spec.data if self.training else spec.validation


@dataclass(frozen=True)
class Failure:
    """A DataError as a value."""

    message: str
    error_type: service_pb2.ErrorType.ValueType


@dataclass(frozen=True)
class Loaded:
    """What a task that loaded shards found: their rows, fingerprints, and whether any has a weight above 0."""

    num_rows: int
    fingerprints: tuple[str, ...]
    has_weight: bool


@dataclass(frozen=True)
class Shards:
    """The shards of a data set as Ray objects, with the rows in them and their fingerprints."""

    references: Sequence[Any] = ()
    fingerprints: Sequence[str] = ()
    num_rows: int = 0

    @property
    def fingerprint(self) -> str:
        """That of the whole; empty without any shard."""
        return fingerprint_data(self.fingerprints) if self.fingerprints else ""

    def fetch(self, index: int) -> Shard:
        """Return a shard. Raises DataError if Ray had to load it anew, and it is no longer what it was."""
        found: Shard | Failure = ray.get(self.references[index])
        if isinstance(found, Failure):
            raise DataError(found.message, found.error_type)
        if fingerprint_shard(found) != self.fingerprints[index]:
            raise DataError(f"the data changed while the job was under way: shard {index} has other values now")
        return found


@dataclass(frozen=True)
class JobData:
    """A job's data as Ray objects."""

    training: Shards
    validation: Shards


def outline(place: Place) -> Dataset | Failure:
    """Describe the data."""
    try:
        spec = job_pb2.JobSpec.FromString(place.spec)
        return describe(place.data, spec, place.files(), training=place.training)
    except DataError as error:
        return Failure(error.message, error.error_type)


def load(place: Place, dataset: Dataset, lo: int, hi: int) -> Iterator[Shard | Loaded | Failure]:
    """Yield the shards lo..hi−1, and last a Loaded or Failure. After a failure it takes the place of the shards."""
    num_rows, fingerprints, has_weight = 0, list[str](), False
    try:
        failpoints.hit("fleet.task")
        for shard in _here(place, dataset).shards(lo, hi):
            yield shard
            num_rows += shard.num_rows
            fingerprints.append(fingerprint_shard(shard))
            has_weight |= shard.weight is None or bool(shard.weight.any())
        yield Loaded(num_rows, tuple(fingerprints), has_weight)
    except DataError as error:
        for _ in range(len(fingerprints), hi - lo + 1):
            yield Failure(error.message, error.error_type)


def _here(place: Place, dataset: Dataset) -> Dataset:
    """Return the data set with the paths of its files on this machine, which fetches an upload if it has it not."""
    try:
        paths = {label: path for path, label in place.files()}
    except DataError as error:  # they were there on the machine that described them
        raise DataError(f"{error.message}, on the machine {platform.node()}", error.error_type) from error
    return replace(dataset, files=tuple(replace(file, path=paths.get(file.label, file.path)) for file in dataset.files))


_outline: Any = ray.remote(num_cpus=0, max_retries=RETRIES, scheduling_strategy="SPREAD")(outline)
_load: Any = ray.remote(num_cpus=0, max_retries=RETRIES, scheduling_strategy="SPREAD")(load)


class Loading:
    """One job's data on their way: describes them, then loads them. Ends with one call of `done`, unless cancelled."""

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        *,
        server: str,
        roots: Sequence[str],
        post: Post,
        done: Callable[[JobData | Failure], None],
    ) -> None:
        encoded = spec.SerializeToString()
        kinds = [True, False] if spec.HasField("validation") else [True]
        self._places = [Place(encoded, training, server, tuple(roots)) for training in kinds]
        self._num_shards = spec.shards
        self._post = post
        self._done = done
        self._pending: list[Any] = []
        self._shards: list[list[Any]] = []
        self._cancelled = False

    def start(self) -> None:
        """Begin."""
        self._then([_outline.remote(place) for place in self._places], self._described)

    def cancel(self) -> None:
        """Have no more done, and drop what there is."""
        self._cancelled = True
        for reference in self._pending:
            ray.cancel(reference, force=True)
        self._pending, self._shards = [], []

    def _described(self, datasets: list[Any]) -> None:
        num_cpus, memory_bytes = _cluster()
        reports: list[list[Any]] = []
        for place, dataset in zip(self._places, datasets, strict=True):
            self._shards.append([])
            reports.append([])
            for lo, hi in parts(self._num_shards, min(dataset.num_parts, num_cpus)):
                options = {"num_returns": hi - lo + 1, **_memory(dataset, memory_bytes)}
                *shards, report = _load.options(**options).remote(place, dataset, lo, hi)
                self._shards[-1] += shards
                reports[-1].append(report)
        num_training = len(reports[0])
        flat = [report for some in reports for report in some]
        self._then(flat, lambda found: self._loaded(found[:num_training], found[num_training:]))

    def _loaded(self, training: list[Loaded], validation: list[Loaded]) -> None:
        found = []
        for place, references, reports in zip(self._places, self._shards, (training, validation), strict=False):
            if not any(report.has_weight for report in reports):
                what = "training" if place.training else "validation"
                message = f"column {place.data.weight!r}: all sample weights of the {what} data are 0"
                self._done(Failure(message, service_pb2.ERROR_TYPE_DATA_INVALID))
                return
            fingerprints = [fingerprint for report in reports for fingerprint in report.fingerprints]
            found.append(Shards(references, fingerprints, sum(report.num_rows for report in reports)))
        self._done(JobData(found[0], found[1] if len(found) > 1 else Shards()))

    def _then(self, references: list[Any], go_on: Callable[[list[Any]], None]) -> None:
        """Go on with the values of tasks when all are there, or end with the first failure among them."""
        self._pending = references
        values: list[Any] = [None] * len(references)
        num_left = len(references)

        def came(i: int, future: Any) -> None:
            nonlocal num_left
            if self._cancelled:
                return
            error = future.exception()
            values[i] = (
                future.result()
                if error is None
                else Failure(f"the data cannot be loaded: {in_words(error)}", UNAVAILABLE)
            )
            num_left -= 1
            if num_left == 0:
                self._pending = []
                failure = next((value for value in values if isinstance(value, Failure)), None)
                if failure is not None:
                    self._shards = []
                    self._done(failure)
                else:
                    go_on(values)

        for i, reference in enumerate(references):
            future = reference.future()
            future.add_done_callback(lambda future, i=i: self._post(lambda: came(i, future)))


def parts(num_shards: int, num_parts: int) -> list[tuple[int, int]]:
    """Return ranges of shards, as equal as can be, for so many tasks."""
    bounds = [num_shards * i // num_parts for i in range(num_parts + 1)]
    return list(itertools.pairwise(bounds))


def _cluster() -> tuple[int, int]:
    """Return the cluster's CPUs, and the memory in bytes that Ray gives out on its smallest node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    num_cpus = int(sum(node.get("CPU", 0) for node in nodes))
    return max(1, num_cpus), int(min((node.get("memory", 0) for node in nodes), default=0))


def _memory(dataset: Dataset, smallest_node_bytes: int) -> dict[str, int]:
    """Return a task's memory option: for a shard and its copy; for all rows where they are read before the first."""
    wanted = 2 * dataset.shard_bytes or 2 * sum(file.size_bytes for file in dataset.files)
    given = min(wanted, smallest_node_bytes // MEMORY_PART)
    return {"memory": given} if given else {}
