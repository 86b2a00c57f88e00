"""The training of one job: a state machine without I/O.

An event in (a worker came or went, a chunk arrived, time passed, a person asked), a list of effects out. It has no
clock, no socket and no await: times come with the events, in seconds. A round is a step, an evaluation or an
examination at one version; between rounds `_advance` decides what follows.
"""

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, tree
from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.tree import Node
from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_server import words
from lockstep_server.arbiter import Arbiter
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.dispatch import Dispatch
from lockstep_server.effects import Dismiss, Effect, Ended, EpochDone, Forget, Keep, Notice, Send, StepDone
from lockstep_server.handout import Gift, Handout
from lockstep_server.holding import Holding
from lockstep_server.keeping import Keeping
from lockstep_server.parameters import Parameters
from lockstep_server.progress import Plan, Progress, describe_stop, stop_reason
from lockstep_server.records import KeptVersion, Outcome, StepRecord
from lockstep_server.reduction import DuplicateValueError, NotANodeError, Reduction, Value
from lockstep_server.rounds import EVALUATE, EXAMINE, STEP, Kind, Round, check_size
from lockstep_server.snapshot import Snapshot
from lockstep_server.update import NotFiniteError, OverflowedError, ParameterUpdate
from lockstep_server.waiting import Waiting
from lockstep_server.witnesses import Dispute, Verdict

Array = npt.NDArray[Any]
INFO, WARNING = service_pb2.SEVERITY_INFO, service_pb2.SEVERITY_WARNING
STUCK_S = 300.0  # a worker whose heart beats but that delivers nothing for so long is given up; with slow steps, later
HALT_S = 10.0  # a stop or pause waits so long for the step under way; then it ends at the version before it
TELL_LATE_S = 10.0  # people hear of late workers so often; the metrics count each time
DECIDE_S = 60.0  # a dispute waits so long for another worker: one that was lost may have been replaced by then
_NO_VALUES = (0,)  # the sizes of the chunks of a node in an evaluation
MAX_FAILURES = 3  # workers that cannot compute the same step; then it is not the worker


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
        max_unsummed_bytes: int,
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
        self._best: Parameters | Array | None = start.best  # with the lowest validation loss so far
        self.workers = Crew(lease_s, now)
        self._holding = Holding(self.workers, max_unsummed_bytes)
        self.handout = Handout(self.workers, spec.shards, STUCK_S)
        self.arbiter = Arbiter(spec, self.workers, self.handout)
        self._dispatch = Dispatch(attempt, self.update, self.progress)
        self.num_duplicates = 0
        self.num_corrupt = 0
        self.ended = False
        self._labels = has_accuracy(spec)
        self._wire_dtype = bfloat16.DTYPE if self.update.rounds else self.update.layout.dtype
        ranges = map(self.update.chunking.range, range(self.update.chunking.num_chunks))
        self._chunk_sizes = [hi - lo for lo, hi in ranges]
        self._steps = Reduction(spec.shards, self.update.chunking.num_chunks, packed=self.update.rounds)
        self._whole_nodes = Reduction(spec.shards, 1)  # of rounds in which a node has no gradient
        self._round: Round | None = None
        self._waiting = Waiting(now)
        self._begun = False
        self._halt: tuple[Outcome, float] | None = None  # and when it was asked for
        self._num_failures = 0  # of workers, at this version
        self._told_late_s = self._told_share_s = -TELL_LATE_S
        self._doubted = -1  # the version whose step was not finite though all its shards are

    @property
    def version(self) -> int:
        """Updates the parameters have seen."""
        return self.update.version

    @property
    def phase(self) -> str:
        """What the training is doing, in words."""
        if self._waiting.waits:
            return f"waiting for workers: {len(self.workers)} of {1 if self._begun else self.spec.workers.min}"
        kind = STEP if self._round is None else self._round.kind
        if kind == EVALUATE:
            return f"evaluating after epoch {self.progress.epoch + 1} of {self.plan.num_epochs}"
        if self._round is not None and self._round.undecided_s is not None:
            return f"waiting for a worker to tell which of two copies is right, at step {self.version + 1}"
        step = f"step {min(self.version + 1, self.plan.num_steps)} of {self.plan.num_steps}"
        return f"examining {step}" if kind == EXAMINE else step

    @property
    def look_s(self) -> float:
        """When `tick` is wanted next, beside the leases; infinite while nobody can be late."""
        return math.inf if self._round is None else self.handout.look_s

    def snapshot(self) -> Snapshot:
        """Return the present version, whole, whatever has arrived of the next."""
        return Snapshot(
            version=self.version,
            epoch=self.progress.epoch,
            step_in_epoch=self.progress.step_in_epoch,
            parameters=self.update.parameters,
            optimizer_state=self.update.optimizer_state(),
            num_updates=self.update.num_updates,
            best=self._best,
            progress=self.progress.to_dict(),
        )

    # Events.

    def worker_joined(self, worker_id: str, num_cpus: int, now: float) -> list[Effect]:
        """Take in a worker whose stream is open."""
        effects = self.worker_lost(worker_id, "it came back", now) if worker_id in self.workers else []
        worker = self.workers[worker_id] = WorkerView(worker_id, num_cpus, now)
        current = self._round
        if current is None:
            return effects + self._advance(now)
        gifts = self.handout.adopt(worker, current, now)
        self._waiting.end(now)
        if not gifts:
            effects += self._dispatch.welcome(Gift(worker, []))
        return effects + self._hand_over(gifts) + self._ask(current, now) + self._speculate(current, now)

    def worker_lost(self, worker_id: str, reason: str, now: float) -> list[Effect]:
        """Give up a worker; its open shards go to others, who compute them again from the same version."""
        worker = self.workers.pop(worker_id, None)
        if worker is None or self.ended:
            return []
        return [Notice(WARNING, words.lost(worker_id, reason)), *self._do_without(worker, now)]

    def worker_leaving(self, worker_id: str, now: float) -> list[Effect]:
        """Let a worker go that leaves in order."""
        worker = self.workers.pop(worker_id, None)
        if worker is None or self.ended:
            return []
        return [Notice(INFO, f"worker {worker_id} has left"), *self._do_without(worker, now)]

    def worker_behind(self, worker_id: str) -> list[Effect]:
        """Let a worker drop what it lags behind with; it gets the newest version whole when it is next given work."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return []
        worker.synced = False
        return [Forget(worker_id)]

    def worker_failed(
        self, worker_id: str, error_type: service_pb2.ErrorType.ValueType, message: str, now: float
    ) -> list[Effect]:
        """Go on without a worker that cannot compute, unless others could not either or its data are at fault."""
        if worker_id not in self.workers or self.ended:
            return []
        self._num_failures += 1
        of_data = error_type in (service_pb2.ERROR_TYPE_DATA_INVALID, service_pb2.ERROR_TYPE_DATA_UNAVAILABLE)
        if of_data or self._num_failures >= MAX_FAILURES:
            return self._fail(error_type, message)
        return self._give_up(worker_id, message, now)

    def chunk_received(self, worker_id: str, chunk: NodeChunk, now: float) -> list[Effect]:
        """Take in a chunk of a node's value."""
        worker, current = self.workers.get(worker_id), self._round
        if worker is not None:
            worker.heard_s = now
        if worker is None or current is None or not self._belongs(chunk, current):
            self.num_duplicates += 1
            return []
        effects: list[Effect] = []
        try:
            gradient = np.frombuffer(chunk.data, self._wire_dtype)
            check_size(chunk, gradient.size, _NO_VALUES if current.evaluates else self._chunk_sizes)
            root = current.reduction.put(chunk.node, chunk.chunk_index, chunk.sums, gradient)
        except DuplicateValueError:
            self.num_duplicates += 1
            dispute = current.witnesses.again(worker_id, chunk)
            if dispute is not None:
                effects = self._weigh(current, chunk, dispute, now)
        except (NotANodeError, IndexError, ValueError) as error:
            return self._give_up(worker_id, str(error), now)
        else:
            current.witnesses.accepted(worker_id, chunk)
            current.computed(worker_id, chunk.compute_s)
            if root is not None:
                effects = self._root(current, chunk, root, now)
        effects += self._arrived(current, worker, now)
        return effects + self._hold(now)

    def finding_received(self, worker_id: str, finding: training_pb2.Finding, now: float) -> list[Effect]:
        """Take in what an examination of some shards has found."""
        worker, current = self.workers.get(worker_id), self._round
        if worker is None or current is None or current.kind != EXAMINE:
            return []
        worker.heard_s = now
        if (finding.attempt, finding.step) != (self.attempt, self.version):
            return []
        if finding.HasField("shard"):
            found = (finding.shard, finding.layer)
            current.found = min(current.found or found, found)
        nothing = np.empty(0, self._wire_dtype)
        for node in (node for part in finding.ranges for node in tree.top_nodes(part.lo, part.hi, self.spec.shards)):
            self.handout.arrived(worker, now)
            with contextlib.suppress(DuplicateValueError):  # another has examined it, too
                current.reduction.put(node, 0, Sums(0.0, 0.0, 0.0), nothing)
        return self._examined(current, now) if current.reduction.complete else self._speculate(current, now)

    def tick(self, now: float) -> list[Effect]:
        """Look at the leases and deadlines."""
        effects: list[Effect] = []
        for worker_id in self.workers.silent(now):
            effects += self._give_up(worker_id, f"silent for more than {self.workers.lease_s:g} s", now, refused=False)
        if self._round is not None:
            for worker_id in self.handout.stuck(self._round, now):
                effects += self._give_up(worker_id, "its heart beats, but it delivers nothing", now)
        if self._round is not None:
            effects += self._speculate(self._round, now)
            effects += self._decide(self._round, now)
        effects += self._hold(now)
        if self._halt is not None and now - self._halt[1] > HALT_S:
            effects += self.abandon(self._halt[0])
        wait_s = self.spec.workers.wait_s
        if not self.ended and self._waiting.spent_s(now) > wait_s:
            message = f"{self.phase} for more than {wait_s:g} s (workers.wait_s)"
            effects += self._fail(service_pb2.ERROR_TYPE_NO_WORKERS, message)
        return effects

    def halt(self, outcome: Outcome, now: float) -> list[Effect]:
        """End between two versions, because a person or the server wants it."""
        self._halt = outcome, now
        return self._advance(now) if self._round is None or self._waiting.waits else []

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
            return effects + self._end(self._halt[0])
        reason = stop_reason(self.spec, self.plan, self.progress, self.version)
        if reason is not None and not self.progress.evaluation_due:
            message = describe_stop(self.spec, self.progress, reason)
            return effects + self._end(Outcome(service_pb2.JOB_STATE_SUCCEEDED, reason, message=message))
        if len(self.workers) < (1 if self._begun else self.spec.workers.min):
            self._waiting.begin(now)
            return effects
        self._begun = True
        self._waiting.end(now)
        return effects + self._begin(EVALUATE if self.progress.evaluation_due else STEP, now)

    def _keep(self, now: float) -> list[Effect]:
        """Keep a new version where that is due; one that is to be evaluated is kept when it has been."""
        if self.progress.evaluation_due or not self.keeping.is_new(self.version):
            return []
        ends_epoch = self.progress.step_in_epoch == 0
        checkpoint = self.snapshot() if self.keeping.take_checkpoint(self.version, now) else None
        if not ends_epoch and checkpoint is None:
            return []
        return [Keep(KeptVersion(self.version, ends_epoch, self.update.parameters, checkpoint))]

    def _begin(self, kind: Kind, now: float) -> list[Effect]:
        reduction = self._steps if kind == STEP else self._whole_nodes
        reduction.reset()
        last_of_epoch = self.progress.step_in_epoch + 1 == self.plan.steps_per_epoch
        self.update.measure_layers = last_of_epoch  # once an epoch: it takes a pass over the gradient
        current = self._round = Round(kind, reduction, now)
        if self.spec.audit and kind != EXAMINE:
            current.audited, current.witnesses.audits = True, self.arbiter.audits(self.version)
        effects = self._hand_over(self.handout.begin(current, now))
        if current.audited:
            effects += self._hand_over(self.arbiter.audit(current, now))
        for worker in self.workers.values():
            if not worker.ranges and worker.synced:
                effects += self.worker_behind(worker.worker_id)
        return effects

    def _end(self, outcome: Outcome) -> list[Effect]:
        self.ended = True
        self._round = None
        self._waiting.stop()
        return [Ended(outcome)]

    def _fail(self, error_type: service_pb2.ErrorType.ValueType, message: str) -> list[Effect]:
        return self._end(Outcome(service_pb2.JOB_STATE_FAILED, error_type=error_type, message=message))

    # Within a round.

    def _belongs(self, chunk: NodeChunk, current: Round) -> bool:
        wanted = STEP if len(chunk.data) else EVALUATE
        return chunk.attempt == self.attempt and chunk.step == self.version and current.kind == wanted

    def _root(self, current: Round, chunk: NodeChunk, root: Value, now: float) -> list[Effect]:
        if current.sums is None:
            if root.sums.weight <= 0 and not current.evaluates:
                message = f"step {self.version}: the sample weights of its rows are all 0"
                return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, message)
            if not math.isfinite(root.sums.loss):
                return self._not_finite(current, "the loss is not finite", now)
            current.sums = root.sums
        if current.evaluates:
            current.whole = True
            return []
        try:
            message_out = self.update.apply(chunk.chunk_index, root.gradient, root.sums.weight)
            current.reduction.release(root)
            current.whole = current.reduction.complete
            made = [message_out, *(self.update.finish() if current.whole else [])]
        except NotFiniteError as error:
            return self._not_finite(current, str(error), now)
        except OverflowedError as error:
            message = f"step {self.version}: {error}; try a smaller learning rate"
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, message)
        return [Send(self.workers.synced, self.version + 1, message) for message in made if message is not None]

    def _arrived(self, current: Round, worker: WorkerView, now: float) -> list[Effect]:
        """Count a chunk of a worker's shards; close the round with the last one."""
        idle = self.handout.arrived(worker, now)
        if self._round is not current:
            return []
        if current.is_over:
            return self._close(current, now)
        if current.whole:
            return self._ask(current, now)
        return self._speculate(current, now) if idle else []

    def _hold(self, now: float) -> list[Effect]:
        """Stop listening to workers that are far ahead, and begin again."""
        return self._holding.look(0 if self._round is None else self._round.reduction.num_waiting_bytes, now)

    def _close(self, current: Round, now: float) -> list[Effect]:
        assert current.sums is not None
        changed = self.handout.closed(current, now)
        effects: list[Effect] = []
        if changed and now - self._told_share_s >= TELL_LATE_S:
            self._told_share_s = now
            effects += [Notice(WARNING if w.pace.slow else INFO, words.share_changed(w)) for w in changed]
        self._waiting.progress()
        close = self._close_evaluation if current.evaluates else self._close_version
        return effects + close(current, current.sums, now)

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
        self._num_failures = 0
        return [StepDone(record), *self._advance(now)]

    def _close_evaluation(self, current: Round, sums: Sums, now: float) -> list[Effect]:
        if sums.weight <= 0:
            message = f"the sample weights of the validation data are all 0 (version {self.version})"
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, message)
        record = self.progress.epoch_done(sums, now - current.started_s, labels=self._labels)
        if self.progress.improves(record.validation_loss):
            self._best = self.update.parameters
        self._round = None
        return [EpochDone(record), *self._advance(now)]

    # What is not finite.

    def _not_finite(self, current: Round, problem: str, now: float) -> list[Effect]:
        """Find out whose fault it is; what is not finite never reaches the parameters."""
        if current.evaluates:
            message = f"the validation loss at version {self.version} is not finite"
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, message)
        if self._doubted == self.version:
            message = f"step {self.version}: {problem}, that of each shard is: their sum leaves the range of numbers"
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, message)
        text = f"step {self.version}: {problem}; its shards are computed again one by one to find out where"
        effects: list[Effect] = [Notice(WARNING, text)]
        effects += self._begin(EXAMINE, now)
        assert self._round is not None
        self._round.problem = problem
        return effects

    def _examined(self, current: Round, now: float) -> list[Effect]:
        if current.found is not None:
            message = words.not_finite(self.version, *current.found, self.plan)
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, message)
        self._doubted = self.version
        self.update.restart()
        text = f"step {self.version}: {current.problem}, but that of each shard is; the step is computed again"
        return [Notice(WARNING, text), *self._begin(STEP, now)]

    # Copies that differ.

    def _weigh(self, current: Round, chunk: NodeChunk, dispute: Dispute, now: float) -> list[Effect]:
        """Go on with a dispute: tell of a new one, ask for further copies, or carry out the verdict."""
        effects: list[Effect] = []
        where = words.place_of(chunk.node, dispute.chunk_index, current, self.update)
        if len(dispute.votes) == 2:
            self.num_corrupt += 1
            effects.append(Notice(WARNING, words.copies_differ(where, dispute)))
        verdict = dispute.verdict()
        if verdict is None:
            return effects + self._ask(current, now)
        current.witnesses.settle(chunk.node)
        return effects + self._carry_out(verdict, where, now)

    def _carry_out(self, verdict: Verdict, where: str, now: float) -> list[Effect]:
        reason = f"it computed {where} wrongly, against the copies of others; it is expelled"
        if not verdict.applied_is_wrong:
            return [effect for worker_id in verdict.wrong for effect in self._give_up(worker_id, reason, now)]
        message = f"{where} was applied wrongly; the job rewinds to its last checkpoint"
        end = self._end(Outcome(service_pb2.JOB_STATE_RUNNING, message=message))  # at once: no wrong version is closed
        effects: list[Effect] = []
        for worker_id in verdict.wrong:
            if self.workers.pop(worker_id, None):
                effects.append(Notice(WARNING, words.lost(worker_id, reason)))
            effects.append(Dismiss(worker_id, reason, refused=True))
        return [*effects, Notice(WARNING, message), *end]

    def _ask(self, current: Round, now: float) -> list[Effect]:
        """Have disputed nodes computed once more; where nobody can tell who is right, the job waits for another."""
        effects: list[Effect] = self._hand_over(self.arbiter.ask(current, now))
        undecided = next(current.witnesses.unasked(), None) if self.workers else None
        if undecided is None:
            current.undecided_s = None
        elif current.undecided_s is None:
            current.undecided_s = now
            text = f"{self._undecided(current, *undecided)}; waiting for another worker"
            effects.append(Notice(WARNING, text))
        return effects

    def _decide(self, current: Round, now: float) -> list[Effect]:
        """Fail the job when no further worker has come to tell who is right.

        If one of them is gone, what it sent need not come again: then the steps from the last checkpoint on are
        computed anew. No version is closed before that, so nobody's word alone has decided anything.
        """
        undecided = next(current.witnesses.unasked(), None)
        if undecided is None or current.undecided_s is None or now - current.undecided_s <= DECIDE_S:
            return []
        message = self._undecided(current, *undecided)
        if any(vote.worker_id not in self.workers for vote in undecided[1].votes):
            return self._end(Outcome(service_pb2.JOB_STATE_RUNNING, message=message))
        return self._fail(service_pb2.ERROR_TYPE_CORRUPTION, message)

    def _undecided(self, current: Round, node: Node, dispute: Dispute) -> str:
        where = words.place_of(node, dispute.chunk_index, current, self.update)
        return f"{where}: the copies of {words.voters(dispute)} differ, and nobody can tell which is right"

    # Workers.

    def _give_up(self, worker_id: str, reason: str, now: float, *, refused: bool = True) -> list[Effect]:
        return [*self.worker_lost(worker_id, reason, now), Dismiss(worker_id, reason, refused=refused)]

    def _do_without(self, worker: WorkerView, now: float) -> list[Effect]:
        current = self._round
        if current is None:
            return []
        current.witnesses.lost(worker.worker_id)
        effects = self._hand_over(self.handout.lost(worker.ranges, current, now))
        if not self.workers:
            self._waiting.begin(now)
            return effects + (self._advance(now) if self._halt is not None else [])
        return effects + self._ask(current, now)

    def _speculate(self, current: Round, now: float) -> list[Effect]:
        """Give shards that are late to idle workers, too."""
        late = self.handout.late(now)
        gifts = self.handout.speculate(current, now) if late else []
        effects = self._hand_over(gifts)
        if gifts and now - self._told_late_s >= TELL_LATE_S:
            self._told_late_s = now
            effects.append(Notice(WARNING, words.given_twice(late, gifts, current, self.version)))
        return effects

    def _hand_over(self, gifts: Iterable[Gift]) -> list[Effect]:
        return [*self._dispatch.hand_over(gifts, STEP if self._round is None else self._round.kind)]


def has_accuracy(spec: job_pb2.JobSpec) -> bool:
    """Whether the metric of the job counts right answers: its last layer tells classes apart."""
    softmax = spec.network.layers[-1].activation == job_pb2.ACTIVATION_SOFTMAX
    return softmax or spec.loss == job_pb2.LOSS_BINARY_CROSS_ENTROPY
