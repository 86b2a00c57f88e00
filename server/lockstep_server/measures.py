"""What a run says of itself in numbers: to the metrics, and to a status."""

import math
from typing import TYPE_CHECKING

from lockstep_server.metrics import Metrics
from lockstep_server.records import EpochRecord, StepRecord
from lockstep_server.speed import Speed
from lockstep_server.update import ParameterUpdate

if TYPE_CHECKING:
    from lockstep_server.training import Training


TELL_S = 0.1  # a small network has a thousand steps a second; nobody reads metrics as often


class Measures:
    """The latest numbers of one run. What happens for every message and step is only noted, and told now and then."""

    def __init__(self, job_id: str, metrics: Metrics, now: float) -> None:
        self.speed = Speed(now)
        self.latest: dict[str, float] = {}  # by name: loss, validation_loss, validation_accuracy; what was measured
        self.num_bytes_in = 0  # not told yet
        self.num_bytes_out = 0
        self._steps: list[StepRecord] = []  # not told yet
        self._told_s = now
        self._job_id = job_id
        self._metrics = metrics
        self._told = (0, 0, 0, 0)  # of what `count` tells: duplicates, reassigned, speculative, corrupt
        metrics.job_started(job_id)

    def step_done(self, record: StepRecord, now: float) -> None:
        """A step is done."""
        self.latest["loss"] = record.loss
        self.speed.step(record.num_rows)
        self._steps.append(record)
        if now - self._told_s >= TELL_S:
            self._told_s = now
            self._tell()

    def epoch_done(self, record: EpochRecord, update: ParameterUpdate) -> None:
        """An epoch is done. NaN stands for what was not measured."""
        for name in ("validation_loss", "validation_accuracy"):
            value = getattr(record, name)
            if not math.isnan(value):
                self.latest[name] = value
        self._metrics.norms(self._job_id, update.gradient_norms, update.parameter_norms)
        self._metrics.epoch(self._job_id, record)

    def count(self, training: "Training") -> None:
        """Tell all there is to tell."""
        self._tell()
        computing = sum(1 for worker in training.workers.values() if worker.ranges)
        self._metrics.workers(self._job_id, {"computing": computing, "idle": len(training.workers) - computing})
        metrics, handout = self._metrics, training.handout
        tellers = (metrics.duplicates, metrics.reassigned, metrics.speculative, metrics.corrupt)
        num_corrupt = training.disputes.num_corrupt
        counts = (training.num_duplicates, handout.num_reassigned, handout.num_speculative, num_corrupt)
        for tell, count, told in zip(tellers, counts, self._told, strict=True):
            tell(self._job_id, count - told)
        self._told = counts

    def _tell(self) -> None:
        if self._steps:
            self._metrics.steps(self._job_id, self._steps)
            self._steps.clear()
        self._metrics.exchanged(self._job_id, "in", self.num_bytes_in)
        self._metrics.exchanged(self._job_id, "out", self.num_bytes_out)
        self.num_bytes_in = self.num_bytes_out = 0
