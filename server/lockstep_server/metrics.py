"""What the server tells Prometheus. Series of a finished job stay for a while, then go."""

import math
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from lockstep_server.records import StepRecord

KEEP_S = 15 * 60.0  # how long a finished job's series stay: a few scrapes of any Prometheus
# Steps take from half a millisecond to minutes.
STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
RPC_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3600)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry or CollectorRegistry()
        self._clock = clock
        self._steps: dict[str, _StepSeries] = {}
        self._ended_s: dict[str, float] = {}
        self._per_job: list[MetricWrapperBase] = []
        self._make_job_metrics()
        self._jobs = Gauge("lockstep_jobs", "Jobs by state.", ["state"], registry=self.registry)
        self._queue = Gauge("lockstep_queue_depth", "Jobs that wait in the queue.", registry=self.registry)
        self._rpc = Histogram(
            "lockstep_rpc_seconds",
            "Seconds that calls took, streams as a whole.",
            ["method", "code"],
            registry=self.registry,
            buckets=RPC_BUCKETS,
        )
        Info("lockstep_build", "Versions of the server.", registry=self.registry).info(
            {"version": _version(), "numpy": np.__version__}
        )

    def _make_job_metrics(self) -> None:
        self._step = self._gauge("step", "Steps done: the version of the parameters.")
        self._epoch = self._gauge("epoch", "Epochs done.")
        self._loss = self._gauge("loss", "Loss of the last step (training) or evaluation (validation).", "split")
        self._gradient_norm = self._gauge(
            "gradient_norm", "Norm of a layer's gradient at the end of the epoch.", "layer"
        )
        self._weight_norm = self._gauge("weight_norm", "Norm of a layer's parameters at the end of the epoch.", "layer")
        self._learning_rate = self._gauge("learning_rate", "Learning rate of the last step.")
        self._rows = self._counter("rows", "Rows trained on.")
        self._updates = self._counter("updates", "Updates of the parameters.")
        self._bytes = self._counter("exchanged_bytes", "Bytes of chunks from (in) and to (out) workers.", "direction")
        self._workers = self._gauge("workers", "Connected workers by what they do.", "state")
        self._reassigned = self._counter("shards_reassigned", "Shards given to another worker in mid-step.")
        self._duplicates = self._counter("duplicates_dropped", "Chunks that arrived late or again.")
        self._speculative = self._counter("speculative_copies", "Shards also given to an idle worker.")
        self._checkpoint_s = self._gauge("checkpoint_seconds", "Seconds the last checkpoint took to write.")
        self._checkpoint_bytes = self._gauge("checkpoint_bytes", "Size of the last checkpoint.")
        self._checkpoint_time = self._gauge("checkpoint_timestamp_seconds", "When the last checkpoint was written.")
        self._step_s = Histogram(
            "lockstep_job_step_seconds", "Seconds of a step.", ["job_id"], registry=self.registry, buckets=STEP_BUCKETS
        )
        self._part_s = self._counter(
            "step_part_seconds", "Seconds of steps: compute, wait for the slowest, transfer.", "part"
        )
        self._per_job.append(self._step_s)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        metric = Gauge(f"lockstep_job_{name}", text, ["job_id", *labels], registry=self.registry)
        self._per_job.append(metric)
        return metric

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        metric = Counter(f"lockstep_job_{name}", text, ["job_id", *labels], registry=self.registry)
        self._per_job.append(metric)
        return metric

    # The jobs of the server.

    def job_started(self, job_id: str) -> None:
        """Begin a job's series."""
        self._ended_s.pop(job_id, None)
        self._steps[job_id] = _StepSeries(self, job_id)

    def job_changed(self, job_id: str, state: str) -> None:
        """Take note of a job's state; one that has left RUNNING has no workers."""
        if state != "RUNNING" and job_id in self._steps:
            self.workers(job_id, {"computing": 0, "idle": 0})

    def job_ended(self, job_id: str) -> None:
        """Keep a job's series for a while."""
        self._ended_s[job_id] = self._clock()

    def jobs(self, states: dict[str, int], queue_depth: int) -> None:
        """Set the number of jobs in each state."""
        for state, count in states.items():
            self._jobs.labels(state.lower()).set(count)
        self._queue.set(queue_depth)

    # One job.

    def step(self, job_id: str, record: StepRecord) -> None:
        """Count a step. On the path of every step: the children of a job are looked up once."""
        self._steps[job_id].observe(record)

    def epoch(self, job_id: str, epoch: int, loss: float, validation_loss: float) -> None:
        """Take the end of an epoch (counted from 0)."""
        self._epoch.labels(job_id).set(epoch + 1)
        if not math.isnan(validation_loss):
            self._loss.labels(job_id, "validation").set(validation_loss)

    def norms(self, job_id: str, gradient: list[float], weight: list[float]) -> None:
        """Set the norms of the layers l = 2..L."""
        for metric, values in ((self._gradient_norm, gradient), (self._weight_norm, weight)):
            for layer, value in enumerate(values, start=2):
                metric.labels(job_id, str(layer)).set(value)

    def workers(self, job_id: str, states: dict[str, int]) -> None:
        """Set the number of a job's workers in each state."""
        for state, count in states.items():
            self._workers.labels(job_id, state).set(count)

    def exchanged(self, job_id: str, direction: str, count: int) -> None:
        """Count bytes exchanged with workers; direction "in" or "out"."""
        self._steps[job_id].bytes[direction].inc(count)

    def reassigned(self, job_id: str, count: int) -> None:
        """Count shards that went to another worker."""
        self._reassigned.labels(job_id).inc(count)

    def duplicates(self, job_id: str, count: int) -> None:
        """Count chunks that were dropped."""
        self._duplicates.labels(job_id).inc(count)

    def speculative(self, job_id: str, count: int) -> None:
        """Count shards that were also given to an idle worker."""
        self._speculative.labels(job_id).inc(count)

    def checkpoint(self, job_id: str, seconds: float, num_bytes: int) -> None:
        """Take a checkpoint that has been written."""
        self._checkpoint_s.labels(job_id).set(seconds)
        self._checkpoint_bytes.labels(job_id).set(num_bytes)
        self._checkpoint_time.labels(job_id).set_to_current_time()

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._rpc.labels(method, code).observe(seconds)

    def exposition(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        self._sweep()
        return generate_latest(self.registry)

    def _sweep(self) -> None:
        """Remove the series of jobs that ended long ago."""
        for job_id in [job_id for job_id, ended_s in self._ended_s.items() if self._clock() - ended_s > KEEP_S]:
            del self._ended_s[job_id]
            self._steps.pop(job_id, None)
            for metric in self._per_job:
                for labels in list(_labels_of(metric, job_id)):
                    metric.remove(*labels)


class _StepSeries:
    """The children that every step of one job touches."""

    def __init__(self, metrics: Metrics, job_id: str) -> None:
        self._step = metrics._step.labels(job_id)
        self._loss = metrics._loss.labels(job_id, "training")
        self._learning_rate = metrics._learning_rate.labels(job_id)
        self._rows = metrics._rows.labels(job_id)
        self._updates = metrics._updates.labels(job_id)
        self._step_s = metrics._step_s.labels(job_id)
        self._compute_s, self._wait_s, self._transfer_s = (
            metrics._part_s.labels(job_id, part) for part in ("compute", "wait", "transfer")
        )
        self.bytes = {direction: metrics._bytes.labels(job_id, direction) for direction in ("in", "out")}

    def observe(self, record: StepRecord) -> None:
        self._step.set(record.step + 1)
        self._loss.set(record.loss)
        self._learning_rate.set(record.learning_rate)
        self._rows.inc(record.num_rows)
        self._updates.inc()
        self._step_s.observe(record.step_s)
        self._compute_s.inc(record.compute_s)
        self._wait_s.inc(record.wait_s)
        self._transfer_s.inc(record.transfer_s)


def _labels_of(metric: MetricWrapperBase, job_id: str) -> Iterator[tuple[str, ...]]:
    """Yield the label values of a metric's series that belong to a job."""
    names = metric._labelnames
    seen = {
        tuple(sample.labels.get(name, "") for name in names) for family in metric.collect() for sample in family.samples
    }
    return (labels for labels in seen if labels[0] == job_id)


def _version() -> str:
    try:
        return version("lockstep-training")
    except PackageNotFoundError:
        return "unknown"
