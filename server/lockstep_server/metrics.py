"""What the server tells Prometheus. Series of a finished job stay for a while, then go.

`docs/metrics.md` says what every metric means. Events come from the event loop, scrapes from threads of their own.
"""

import math
import platform
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)

from lockstep_server.records import EpochRecord, StepRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of an exposition: the format that every Prometheus reads
KEEP_S = 15 * 60.0  # how long a finished job's series stay: a few scrapes of any Prometheus
# Steps take from half a millisecond to minutes.
STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
RPC_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3600)

# Else every counter and histogram has a second series that says when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]

Metric = Counter | Gauge | Histogram


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry or CollectorRegistry()
        self._clock = clock
        self._lock = threading.Lock()  # of the two below
        self._series: dict[str, _JobSeries] = {}
        self._ended_s: dict[str, float] = {}
        self._make_training_metrics()
        self._make_cluster_metrics()
        self._make_server_metrics()
        self._counters = (
            self._rows,
            self._updates,
            self._reassigned,
            self._duplicates,
            self._speculative,
            self._corrupt,
        )

    def _make_training_metrics(self) -> None:
        self._step = self._gauge("step", "Steps done: the version of the parameters.")
        self._epoch = self._gauge("epoch", "Epochs done.")
        self._loss = self._gauge("loss", "Loss of the last step (training) or evaluation (validation).", "split")
        self._learning_rate = self._gauge("learning_rate", "Learning rate of the last step.")
        self._gradient_norm = self._gauge("gradient_norm", "Norm of a layer's gradient, end of epoch.", "layer")
        self._weight_norm = self._gauge("weight_norm", "Norm of a layer's parameters, end of epoch.", "layer")
        self._rows = self._counter("rows", "Rows trained on.")
        self._updates = self._counter("updates", "Updates of the parameters.")
        self._step_s = Histogram(
            "lockstep_job_step_seconds", "Seconds of a step.", ["job_id"], registry=self.registry, buckets=STEP_BUCKETS
        )
        self._part_s = self._counter("step_part_seconds", "Seconds of all steps: compute, wait, transfer.", "part")

    def _make_cluster_metrics(self) -> None:
        self._bytes = self._counter("exchanged_bytes", "Bytes of chunks from (in) and to (out) workers.", "direction")
        self._workers = self._gauge("workers", "Connected workers by what they do.", "state")
        self._reassigned = self._counter("shards_reassigned", "Shards given to another worker in mid-step.")
        self._duplicates = self._counter("duplicates_dropped", "Chunks that arrived late or again.")
        self._speculative = self._counter("speculative_copies", "Shards also given to an idle worker.")
        self._corrupt = self._counter("corrupt_copies", "Nodes of which two copies differed.")
        self._checkpoint_s = self._gauge("checkpoint_seconds", "Seconds the last checkpoint took to write.")
        self._checkpoint_bytes = self._gauge("checkpoint_bytes", "Size of the last checkpoint.")
        self._checkpoint_age_s = self._gauge("checkpoint_age_seconds", "Seconds since the last checkpoint.")

    def _make_server_metrics(self) -> None:
        self._jobs = Gauge("lockstep_jobs", "Jobs by state.", ["state"], registry=self.registry)
        self._queue = Gauge("lockstep_queue_depth", "Jobs that wait in the queue.", registry=self.registry)
        self._rpc = Histogram(
            "lockstep_rpc_seconds",
            "Seconds that calls took, streams as a whole.",
            ["method", "code"],
            registry=self.registry,
            buckets=RPC_BUCKETS,
        )
        build = {"version": _version(), "python": platform.python_version(), "numpy": np.__version__}
        Info("lockstep_build", "Versions of the server.", registry=self.registry).info(build)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"lockstep_job_{name}", text, ["job_id", *labels], registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"lockstep_job_{name}", text, ["job_id", *labels], registry=self.registry)

    # The jobs of the server.

    def jobs(self, states: dict[str, int], queue_depth: int) -> None:
        """Set the number of jobs in each state."""
        for state, count in states.items():
            self._jobs.labels(state.lower()).set(count)
        self._queue.set(queue_depth)

    def job_started(self, job_id: str) -> None:
        """Begin a job's series, or take them up again: its counters from 0, its gauges when they have a value."""
        with self._lock:
            self._ended_s.pop(job_id, None)
            series = self._of(job_id)
            for counter in self._counters:
                series[counter]
            for direction in ("in", "out"):
                series[self._bytes, direction]

    def job_changed(self, job_id: str, state: str) -> None:
        """Take note of a job's state; one that has left RUNNING has no workers."""
        if state != "RUNNING" and job_id in self._series:
            self.workers(job_id, {"computing": 0, "idle": 0})

    def job_ended(self, job_id: str) -> None:
        """Keep a job's series for a while."""
        with self._lock:
            self._ended_s[job_id] = self._clock()

    # One job.

    def steps(self, job_id: str, records: Sequence[StepRecord]) -> None:
        """Count steps, one at least."""
        series, last = self._of(job_id), records[-1]
        series[self._step].set(last.step + 1)
        series[self._loss, "training"].set(last.loss)
        series[self._learning_rate].set(last.learning_rate)
        series[self._rows].inc(sum(record.num_rows for record in records))
        series[self._updates].inc(len(records))
        for record in records:
            series[self._step_s].observe(record.step_s)
        series[self._part_s, "compute"].inc(sum(record.compute_s for record in records))
        series[self._part_s, "wait"].inc(sum(record.wait_s for record in records))
        series[self._part_s, "transfer"].inc(sum(record.transfer_s for record in records))

    def epoch(self, job_id: str, record: EpochRecord) -> None:
        """Take the end of an epoch and, if there was one, its evaluation."""
        series = self._of(job_id)
        series[self._epoch].set(record.epoch + 1)
        if not math.isnan(record.validation_loss):
            series[self._loss, "validation"].set(record.validation_loss)

    def norms(self, job_id: str, gradient: list[float], weight: list[float]) -> None:
        """Set the norms of the layers l = 2..L."""
        series = self._of(job_id)
        for metric, values in ((self._gradient_norm, gradient), (self._weight_norm, weight)):
            for layer, value in enumerate(values, start=2):
                series[metric, str(layer)].set(value)

    def workers(self, job_id: str, states: dict[str, int]) -> None:
        """Set the number of a job's workers in each state."""
        for state, count in states.items():
            self._of(job_id)[self._workers, state].set(count)

    def exchanged(self, job_id: str, direction: str, num_bytes: int) -> None:
        """Count bytes exchanged with workers; direction "in" or "out"."""
        self._of(job_id)[self._bytes, direction].inc(num_bytes)

    def reassigned(self, job_id: str, count: int) -> None:
        """Count shards that went to another worker."""
        self._of(job_id)[self._reassigned].inc(count)

    def duplicates(self, job_id: str, count: int) -> None:
        """Count chunks that were dropped."""
        self._of(job_id)[self._duplicates].inc(count)

    def speculative(self, job_id: str, count: int) -> None:
        """Count shards that were also given to an idle worker."""
        self._of(job_id)[self._speculative].inc(count)

    def corrupt(self, job_id: str, count: int) -> None:
        """Count nodes of which two copies differed."""
        self._of(job_id)[self._corrupt].inc(count)

    def checkpoint(self, job_id: str, seconds: float, num_bytes: int) -> None:
        """Take a checkpoint that has been written."""
        series, written_s = self._of(job_id), self._clock()
        series[self._checkpoint_s].set(seconds)
        series[self._checkpoint_bytes].set(num_bytes)
        series[self._checkpoint_age_s].set_function(lambda: self._clock() - written_s)

    # Calls and scrapes.

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._rpc.labels(method, code).observe(seconds)

    def exposition(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        self._sweep()
        return generate_latest(self.registry)

    def _sweep(self) -> None:
        """Remove the series of jobs that ended long ago."""
        with self._lock:
            over = [job_id for job_id, ended_s in self._ended_s.items() if self._clock() - ended_s >= KEEP_S]
            for job_id in over:
                del self._ended_s[job_id]
                self._of(job_id).remove()
                del self._series[job_id]

    def _of(self, job_id: str) -> "_JobSeries":
        series = self._series.get(job_id)
        if series is None:
            series = self._series[job_id] = _JobSeries(job_id)
        return series


class _JobSeries(dict[Any, Any]):
    """The series of one job, by metric, or metric and further label: each looked up once, all removed together."""

    def __init__(self, job_id: str) -> None:
        super().__init__()
        self._job_id = job_id

    def __missing__(self, key: Metric | tuple[Metric, str]) -> Any:
        metric, *labels = key if isinstance(key, tuple) else (key,)
        child = self[key] = metric.labels(self._job_id, *labels)
        return child

    def remove(self) -> None:
        for key in list(self):
            metric, *labels = key if isinstance(key, tuple) else (key,)
            metric.remove(self._job_id, *labels)


def _version() -> str:
    try:
        return version("lockstep-training")
    except PackageNotFoundError:
        return "unknown"
