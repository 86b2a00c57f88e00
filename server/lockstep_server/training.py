"""The training of one job: a state machine without I/O.

An event in (a worker came or went, a chunk arrived, time passed, a person asked), a list of effects out. It has no
clock, no socket and no await: times come with the events, in seconds. A round is a step or an evaluation at one
version; between rounds `_advance` decides what follows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.layout import Layout
from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_server.assignment import Range, assign, deal
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.effects import Dismiss, Effect, Ended, EpochDone, Forget, Keep, Notice, Send, StepDone
from lockstep_server.keeping import Keeping
from lockstep_server.parameters import Parameters
from lockstep_server.progress import Plan, Progress, describe_stop, stop_reason
from lockstep_server.records import KeptVersion, Outcome, StepRecord
from lockstep_server.reduction import DuplicateValueError, NotANodeError, Reduction, Value
from lockstep_server.rounds import Round, check_size
from lockstep_server.update import NotFiniteError, ParameterUpdate

Array = npt.NDArray[Any]


class Training:
    """One attempt at one job, from the version of `start` on."""

    def __init__(
        self,
        spec: job_pb2.JobSpec,
        *,
        num_rows: int,
        num_validation_rows: int,
        attempt: int,
        start: Checkpoint,
        lease_s: float,
        checkpoint_s: float,
        now: float,
    ) -> None:
        self.spec = spec
        self.attempt = attempt
        self.plan = Plan.of(spec, num_rows, num_validation_rows)
        self.progress = Progress.from_dict(start.progress)
        self.update = ParameterUpdate(
            spec,
            attempt=attempt,
            version=start.version,
            parameters=start.parameters,
            state=start.optimizer_state or None,
            num_updates=start.num_updates,
        )
        self.keeping = Keeping(spec.checkpoints, checkpoint_s, start.version, now)
        self._best: Parameters | None = None
        self._start_best = start.best
        self.workers = Crew(lease_s, now)
        self.num_duplicates = 0
        self.num_reassigned = 0
        self.ended = False
        self._labels = has_accuracy(spec)
        self._dtype = Layout.from_spec(spec).dtype
        self._steps = Reduction(spec.shards, self.update.chunking.num_chunks)
        self._evaluations = Reduction(spec.shards, 1)
        self._round: Round | None = None
        self._waiting_since_s: float | None = now
        self._begun = False
        self._halt: Outcome | None = None

    @property
    def version(self) -> int:
        """Updates the parameters have seen."""
        return self.update.version

    @property
    def phase(self) -> str:
        """What the training is doing, in words."""
        if self._waiting_since_s is not None:
            return f"waiting for workers: {len(self.workers)} of {1 if self._begun else self.spec.workers.min}"
        if self._round is not None and self._round.evaluates:
            return f"evaluating after epoch {self.progress.epoch + 1} of {self.plan.num_epochs}"
        return f"step {min(self.version + 1, self.plan.num_steps)} of {self.plan.num_steps}"

    def checkpoint(self) -> Checkpoint:
        """Return the present version, whole, whatever has arrived of the next."""
        return Checkpoint(
            version=self.version,
            epoch=self.progress.epoch,
            step_in_epoch=self.progress.step_in_epoch,
            parameters=self.update.parameters.flat(),
            optimizer_state=self.update.optimizer_state(),
            num_updates=self.update.num_updates,
            best=self.best(),
            progress=self.progress.to_dict(),
        )

    def best(self) -> Array | None:
        """Return the parameters with the lowest validation loss so far, None before the first evaluation."""
        return self._start_best if self._best is None else self._best.flat()

    # Events.

    def worker_joined(self, worker_id: str, num_cpus: int, now: float) -> list[Effect]:
        """Take in a worker whose stream is open."""
        effects = self.worker_lost(worker_id, "it came back", now) if worker_id in self.workers else []
        worker = self.workers[worker_id] = WorkerView(worker_id, num_cpus, now)
        if self._round is None:
            return effects + self._advance(now)
        if self._round.orphans:
            worker.ranges, self._round.orphans = self._round.orphans, []
            self.num_reassigned += sum(hi - lo for lo, hi in worker.ranges)
            self._waiting_since_s = None
        return effects + self._sync(worker) + [self._work([worker_id], worker.ranges)] + self._made_so_far(worker)

    def worker_lost(self, worker_id: str, reason: str, now: float) -> list[Effect]:
        """Give up a worker; its open shards go to others, who compute them again from the same version."""
        worker = self.workers.pop(worker_id, None)
        if worker is None or self.ended:
            return []
        effects: list[Effect] = [Notice(service_pb2.SEVERITY_WARNING, f"worker {worker_id} is lost: {reason}")]
        if self._round is not None:
            missing = [gap for lo, hi in worker.ranges for gap in self._round.reduction.missing(lo, hi)]
            effects += self._reassign(missing, now)
        return effects

    def worker_leaving(self, worker_id: str, now: float) -> list[Effect]:
        """Let a worker go that leaves in order."""
        effects = [effect for effect in self.worker_lost(worker_id, "", now) if not isinstance(effect, Notice)]
        return [Notice(service_pb2.SEVERITY_INFO, f"worker {worker_id} has left"), *effects]

    def worker_behind(self, worker_id: str) -> list[Effect]:
        """Let a worker drop what it lags behind with; it gets the newest version whole when it is next given work."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return []
        worker.synced = False
        return [Forget(worker_id)]

    def chunk_received(self, worker_id: str, chunk: NodeChunk, now: float) -> list[Effect]:
        """Take in a chunk of a node's value."""
        self.workers.heard(worker_id, now)
        current = self._round
        evaluates = current is not None and current.evaluates
        stale = chunk.attempt != self.attempt or chunk.step != self.version
        if current is None or stale or evaluates != (len(chunk.data) == 0):
            self.num_duplicates += 1
            return []
        try:
            gradient = np.frombuffer(chunk.data, self._dtype)
            check_size(chunk, gradient.size, self.update.chunking, evaluates=evaluates)
            root = current.reduction.put(chunk.node, chunk.chunk_index, chunk.sums, gradient)
        except DuplicateValueError:
            self.num_duplicates += 1
            return []
        except (NotANodeError, IndexError, ValueError) as error:
            return [*self.worker_lost(worker_id, str(error), now), Dismiss(worker_id, str(error), refused=True)]
        current.computed(worker_id, chunk.compute_s)
        if root is None:
            return []
        return self._evaluated(current, root.sums, now) if evaluates else self._root(current, chunk, root, now)

    def tick(self, now: float) -> list[Effect]:
        """Look at the leases and deadlines."""
        effects: list[Effect] = []
        for worker_id in self.workers.silent(now):
            reason = f"silent for more than {self.workers.lease_s:g} s"
            effects += [*self.worker_lost(worker_id, reason, now), Dismiss(worker_id, reason)]
        wait_s = self.spec.workers.wait_s
        if not self.ended and self._waiting_since_s is not None and now - self._waiting_since_s > wait_s:
            message = f"{self.phase} for more than {wait_s:g} s (workers.wait_s)"
            effects += self._fail(service_pb2.ERROR_TYPE_NO_WORKERS, message)
        return effects

    def halt(self, outcome: Outcome, now: float) -> list[Effect]:
        """End between two versions, because a person or the server wants it."""
        self._halt = outcome
        return self._advance(now) if self._round is None or self._waiting_since_s is not None else []

    def abandon(self, outcome: Outcome) -> list[Effect]:
        """End at once, at the present version; what has arrived of the next is dropped."""
        return [] if self.ended else self._end(outcome)

    # Between two versions.

    def _advance(self, now: float) -> list[Effect]:
        if self.ended:
            return []
        effects: list[Effect] = []
        if self.progress.evaluation_due and self.plan.num_validation_rows == 0:
            effects.append(EpochDone(self.progress.epoch_done(None, 0.0, labels=self._labels)))
        effects += self._keep(now)
        if self._halt is not None:
            return effects + self._end(self._halt)
        reason = stop_reason(self.spec, self.plan, self.progress, self.version)
        if reason is not None and not self.progress.evaluation_due:
            message = describe_stop(self.spec, self.progress, reason)
            return effects + self._end(Outcome(service_pb2.JOB_STATE_SUCCEEDED, reason, message=message))
        if len(self.workers) < (1 if self._begun else self.spec.workers.min):
            self._waiting_since_s = now if self._waiting_since_s is None else self._waiting_since_s
            return effects
        self._begun = True
        self._waiting_since_s = None
        evaluate = self.progress.evaluation_due
        return effects + self._begin(training_pb2.WORK_KIND_EVALUATE if evaluate else training_pb2.WORK_KIND_STEP, now)

    def _keep(self, now: float) -> list[Effect]:
        """Keep a new version where that is due; one that is to be evaluated is kept when it has been."""
        if self.progress.evaluation_due or not self.keeping.is_new(self.version):
            return []
        ends_epoch = self.progress.step_in_epoch == 0
        checkpoint = self.checkpoint() if self.keeping.take_checkpoint(self.version, now) else None
        if not ends_epoch and checkpoint is None:
            return []
        return [Keep(KeptVersion(self.version, ends_epoch, self.update.parameters, checkpoint))]

    def _begin(self, kind: training_pb2.WorkKind.ValueType, now: float) -> list[Effect]:
        reduction = self._evaluations if kind == training_pb2.WORK_KIND_EVALUATE else self._steps
        reduction.reset()
        last_of_epoch = self.progress.step_in_epoch + 1 == self.plan.steps_per_epoch
        self.update.measure_layers = last_of_epoch  # once an epoch: it takes a pass over the gradient
        self._round = Round(kind, reduction, now)
        workers = list(self.workers.values())
        computing, idle = workers[: self.spec.shards], workers[self.spec.shards :]
        ranges = assign(self.spec.shards, [worker.num_cpus for worker in computing])
        effects: list[Effect] = []
        for worker, (lo, hi) in zip(computing, ranges, strict=True):
            if lo == hi:
                idle.append(worker)
                continue
            worker.ranges = [(lo, hi)]
            effects += self._sync(worker)
            effects.append(self._work([worker.worker_id], worker.ranges))
        for worker in idle:
            worker.ranges = []
            effects += self.worker_behind(worker.worker_id) if worker.synced else []
        return effects

    def _end(self, outcome: Outcome) -> list[Effect]:
        self.ended = True
        self._round = None
        self._waiting_since_s = None
        return [Ended(outcome)]

    def _fail(self, error_type: service_pb2.ErrorType.ValueType, message: str) -> list[Effect]:
        return self._end(Outcome(service_pb2.JOB_STATE_FAILED, error_type=error_type, message=message))

    # Within a round.

    def _root(self, current: Round, chunk: NodeChunk, root: Value, now: float) -> list[Effect]:
        if current.sums is None:
            problem = self._problem_with(root.sums)
            if problem:
                return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, f"step {self.version}: {problem}")
            current.sums = root.sums
        try:
            message = self.update.apply(chunk.chunk_index, root.gradient, root.sums.weight)
        except NotFiniteError as error:
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, f"step {self.version}: {error}")
        current.reduction.release(root)
        synced = self.workers.synced
        effects: list[Effect] = [Send(synced, self.version + 1, message)] if message is not None else []
        if current.reduction.complete:
            effects += [Send(synced, self.version + 1, late) for late in self.update.finish()]
            effects += self._close_version(current, root.sums, now)
        return effects

    def _close_version(self, current: Round, sums: Sums, now: float) -> list[Effect]:
        step_s = now - current.started_s
        compute_s, wait_s, transfer_s = current.seconds(step_s)
        record = StepRecord(
            step=self.version,
            epoch=self.progress.epoch,
            loss=sums.loss / sums.weight + self.update.penalty(),
            gradient_norm=self.update.gradient_norm(),
            learning_rate=self.update.learning_rate,
            num_rows=self.plan.rows_of_step(self.progress.step_in_epoch),
            weight=sums.weight,
            step_s=step_s,
            compute_s=compute_s,
            wait_s=wait_s,
            transfer_s=transfer_s,
        )
        self.progress.step_done(sums, record.loss, record.gradient_norm, step_s, self.plan.steps_per_epoch)
        self.update.commit()
        self._round = None
        return [StepDone(record), *self._advance(now)]

    def _evaluated(self, current: Round, sums: Sums, now: float) -> list[Effect]:
        if self._problem_with(sums):
            message = f"the validation loss at version {self.version} is not finite"
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, message)
        record = self.progress.epoch_done(sums, now - current.started_s, labels=self._labels)
        if self.progress.improves(record.validation_loss):
            self._best = self.update.parameters
        self._round = None
        return [EpochDone(record), *self._advance(now)]

    def _problem_with(self, sums: Sums) -> str | None:
        if not np.isfinite(sums.loss):
            return "the loss is not finite"
        return None if sums.weight > 0 else "the sample weights of its rows are all 0"

    def _reassign(self, missing: list[Range], now: float) -> list[Effect]:
        assert self._round is not None
        if not missing:
            return []
        workers = self.workers.idle_first()
        if not workers:
            self._round.orphans += missing
            self._waiting_since_s = now
            return self._advance(now) if self._halt is not None else []
        effects: list[Effect] = []
        self.num_reassigned += sum(hi - lo for lo, hi in missing)
        for worker, ranges in zip(workers, deal(missing, [worker.num_cpus for worker in workers]), strict=True):
            if ranges:
                was_synced = worker.synced
                effects += self._sync(worker)
                effects.append(self._work([worker.worker_id], ranges))
                effects += [] if was_synced else self._made_so_far(worker)
                worker.ranges = worker.ranges + ranges
        return effects

    def _sync(self, worker: WorkerView) -> list[Effect]:
        """Send the present version whole to a worker that does not have it."""
        if worker.synced:
            return []
        worker.synced = True
        return [Send([worker.worker_id], self.version, message) for message in self.update.parameters.messages]

    def _made_so_far(self, worker: WorkerView) -> list[Effect]:
        """Send the chunks of the next version that the others have been sent already."""
        made = [message for message in self.update.next_messages if message is not None]
        return [Send([worker.worker_id], self.version + 1, message) for message in made]

    def _work(self, worker_ids: list[str], ranges: list[Range]) -> Send:
        work = training_pb2.Work(
            attempt=self.attempt,
            version=self.version,
            kind=self._round.kind if self._round is not None and ranges else training_pb2.WORK_KIND_WAIT,
            epoch=self.progress.epoch,
            step_in_epoch=self.progress.step_in_epoch,
            ranges=[training_pb2.ShardRange(lo=lo, hi=hi) for lo, hi in ranges],
        )
        return Send(worker_ids, self.version, training_pb2.ServerMessage(work=work).SerializeToString())


def has_accuracy(spec: job_pb2.JobSpec) -> bool:
    """Whether the metric of the job counts right answers: its last layer tells classes apart."""
    softmax = spec.network.layers[-1].activation == job_pb2.ACTIVATION_SOFTMAX
    return softmax or spec.loss == job_pb2.LOSS_BINARY_CROSS_ENTROPY
