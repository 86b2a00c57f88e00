"""How far a training has come, and which of its rules ends it."""

import math
from dataclasses import dataclass
from typing import Any

from lockstep_proto import rows
from lockstep_proto.codec import Sums
from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_server.records import EpochRecord, StepRecord
from lockstep_server.update import ParameterUpdate

_NAN = math.nan


@dataclass(frozen=True)
class Plan:
    """The steps and epochs that a spec and its data amount to."""

    num_shards: int
    num_rows: int
    num_validation_rows: int
    rows_per_shard: int | None  # of one step; None for all
    steps_per_epoch: int
    num_steps: int
    num_epochs: int

    @classmethod
    def of(cls, spec: job_pb2.JobSpec, num_rows: int, num_validation_rows: int) -> "Plan":
        """Return the plan of a complete spec."""
        batch_rows = None if spec.batch_size.full else spec.batch_size.rows
        per_epoch = rows.steps_per_epoch(num_rows, spec.shards, batch_rows)
        by_epochs = spec.epochs * per_epoch if spec.HasField("epochs") else None
        by_steps = spec.steps if spec.HasField("steps") else None
        num_steps = min(limit for limit in (by_epochs, by_steps) if limit is not None)
        return cls(
            num_shards=spec.shards,
            num_rows=num_rows,
            num_validation_rows=num_validation_rows,
            rows_per_shard=None if batch_rows is None else batch_rows // spec.shards,
            steps_per_epoch=per_epoch,
            num_steps=num_steps,
            num_epochs=math.ceil(num_steps / per_epoch),
        )

    def rows_of_step(self, step_in_epoch: int) -> int:
        """Return how many rows the shards have left to give to one step, together."""
        n = self.rows_per_shard
        if n is None:
            return self.num_rows
        smallest, rest = divmod(self.num_rows, self.num_shards)  # `rest` shards have one row more
        taken = step_in_epoch * n

        def of_shard(size: int) -> int:
            return min(max(size - taken, 0), n)

        return rest * of_shard(smallest + 1) + (self.num_shards - rest) * of_shard(smallest)


@dataclass
class Progress:
    """Position and running sums of a training; what a checkpoint keeps beside parameters and optimizer state."""

    epoch: int = 0
    step_in_epoch: int = 0
    elapsed_s: float = 0.0
    epoch_weight: float = 0.0
    epoch_loss: float = 0.0
    epoch_metric: float = 0.0
    epoch_s: float = 0.0
    validation_loss: float = math.inf  # of the last evaluation
    best_validation_loss: float = math.inf
    epochs_without_gain: int = 0
    evaluation_due: bool = False
    gradient_norm: float = math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; infinities as None."""
        return {name: None if value == math.inf else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """Return what `to_dict` gave."""
        known: dict[str, Any] = {name: math.inf if value is None else value for name, value in values.items()}
        return cls(**known)

    def step_done(
        self, update: ParameterUpdate, plan: Plan, sums: Sums, step_s: float, parts_s: tuple[float, float, float]
    ) -> StepRecord:
        """Count one step, with its sums and all chunks of `update`. `parts_s`: of computing, waiting and transfer."""
        compute_s, wait_s, transfer_s = parts_s
        record = StepRecord(
            step=update.version,
            epoch=self.epoch,
            loss=sums.loss / sums.weight + update.penalty(),
            gradient_norm=update.gradient_norm(),
            learning_rate=update.learning_rate,
            num_rows=plan.rows_of_step(self.step_in_epoch),
            weight=sums.weight,
            step_s=step_s,
            compute_s=compute_s,
            wait_s=wait_s,
            transfer_s=transfer_s,
        )
        self.epoch_weight += record.weight
        self.epoch_loss += record.loss * record.weight
        self.epoch_metric += sums.metric
        self.epoch_s += record.step_s
        self.elapsed_s += record.step_s
        self.gradient_norm = record.gradient_norm
        self.step_in_epoch += 1
        self.evaluation_due = self.step_in_epoch == plan.steps_per_epoch
        return record

    def epoch_done(self, validation: Sums | None, evaluation_s: float, *, labels: bool) -> EpochRecord:
        """Count one epoch, with the sums of its evaluation if there was one."""
        measured = validation is not None and validation.weight > 0
        loss = validation.loss / validation.weight if validation is not None and measured else _NAN
        accuracy = validation.metric / validation.weight if validation is not None and measured and labels else _NAN
        record = EpochRecord(
            epoch=self.epoch,
            loss=self.epoch_loss / self.epoch_weight,
            accuracy=self.epoch_metric / self.epoch_weight if labels else _NAN,
            validation_loss=loss,
            validation_accuracy=accuracy,
            duration_s=self.epoch_s + evaluation_s,
        )
        self.elapsed_s += evaluation_s
        self.epoch += 1
        self.step_in_epoch = 0
        self.epoch_weight = self.epoch_loss = self.epoch_metric = self.epoch_s = 0.0
        self.evaluation_due = False
        return record

    def improves(self, validation_loss: float) -> bool:
        """Remember an evaluation, and whether it is better than the best so far."""
        self.validation_loss = validation_loss
        if validation_loss < self.best_validation_loss:
            self.best_validation_loss = validation_loss
            self.epochs_without_gain = 0
            return True
        self.epochs_without_gain += 1
        return False


def has_accuracy(spec: job_pb2.JobSpec) -> bool:
    """Whether the metric of the job counts right answers: its last layer tells classes apart."""
    softmax = spec.network.layers[-1].activation == job_pb2.ACTIVATION_SOFTMAX
    return softmax or spec.loss == job_pb2.LOSS_BINARY_CROSS_ENTROPY


def stop_reason(
    spec: job_pb2.JobSpec, plan: Plan, progress: Progress, version: int
) -> service_pb2.StopReason.ValueType | None:
    """Return the rule that ends the training at this version, if one does."""
    stopping = spec.stopping
    if stopping.HasField("gradient_norm") and progress.gradient_norm <= stopping.gradient_norm:
        return service_pb2.STOP_REASON_GRADIENT_NORM
    if stopping.HasField("patience") and progress.epochs_without_gain >= stopping.patience:
        return service_pb2.STOP_REASON_PATIENCE
    if version >= plan.num_steps:
        by_epochs = spec.HasField("epochs") and spec.epochs * plan.steps_per_epoch <= version
        return service_pb2.STOP_REASON_EPOCHS if by_epochs else service_pb2.STOP_REASON_STEPS
    if stopping.HasField("wall_time_s") and progress.elapsed_s >= stopping.wall_time_s:
        return service_pb2.STOP_REASON_WALL_TIME
    return None


def describe_stop(spec: job_pb2.JobSpec, progress: Progress, reason: service_pb2.StopReason.ValueType) -> str:
    """Say in words which rule ended the training."""
    stopping = spec.stopping
    words = {
        service_pb2.STOP_REASON_EPOCHS: f"all {spec.epochs} epochs are done",
        service_pb2.STOP_REASON_STEPS: f"all {spec.steps} steps are done",
        service_pb2.STOP_REASON_GRADIENT_NORM: (
            f"converged: the gradient norm {progress.gradient_norm:.3g} is at most {stopping.gradient_norm:g}"
        ),
        service_pb2.STOP_REASON_PATIENCE: f"no lower validation loss for {stopping.patience} epochs",
        service_pb2.STOP_REASON_WALL_TIME: f"the wall time of {stopping.wall_time_s:g} s is over",
        service_pb2.STOP_REASON_USER: "stopped by a person",
    }
    return words[reason]
