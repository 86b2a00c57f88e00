"""The training of one job: a state machine without I/O.

An event in (a worker came or went, a chunk arrived, time passed, a person asked), a list of effects out. It has no
clock, no socket and no await: times come with the events, in seconds. A round is a step, an evaluation or an
examination at one version; between rounds `_advance` decides what follows.
"""

import math

from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_server import words
from lockstep_server.arbiter import Arbiter
from lockstep_server.checkpoints import Checkpoint
from lockstep_server.course import Course
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.dispatch import Dispatch
from lockstep_server.disputes import Disputes, Ruling
from lockstep_server.effects import INFO, WARNING, Dismiss, Effect, Ended, EpochDone, Notice, Send, StepDone
from lockstep_server.examination import Examination
from lockstep_server.handout import Handout
from lockstep_server.holding import Holding
from lockstep_server.intake import Intake, StepError
from lockstep_server.keeping import Keeping
from lockstep_server.progress import Plan, Progress, has_accuracy
from lockstep_server.records import Outcome
from lockstep_server.reduction import DuplicateValueError, Value
from lockstep_server.room import Room, own_memory
from lockstep_server.rounds import EXAMINE, STEP, Kind, Round
from lockstep_server.staffing import Staffing
from lockstep_server.update import NotFiniteError, ParameterUpdate

STUCK_S = 300.0  # a worker whose heart beats but that delivers nothing for so long is given up; with slow steps, later
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
        far: bool = False,
        room: Room = own_memory,
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
            far=far,
            room=room,
        )
        self.keeping = Keeping(spec.checkpoints, checkpoint_s, self.update, self.progress, start.best, now)
        self.snapshot = self.keeping.snapshot
        self.workers = Crew(lease_s, now)
        self._course = Course(spec, self.plan, self.progress, self.workers, now)
        self._holding = Holding(self.workers, max_unsummed_bytes)
        self.handout = Handout(self.workers, spec.shards, STUCK_S)
        self._arbiter = Arbiter(spec, self.workers, self.handout)
        dispatch = Dispatch(attempt, self.update, self.progress)
        self._staffing = Staffing(self.workers, self.handout, self._arbiter, dispatch)
        self.disputes = Disputes(self.workers, self._arbiter, self._staffing, self.update)
        self._intake = Intake(spec, attempt, self.update)
        self._examination = Examination(self.plan, self.handout, self._intake.wire_dtype)
        self.num_duplicates = 0
        self.ended = False
        self._labels = has_accuracy(spec)
        self._round: Round | None = None
        self._num_failures = 0  # of workers, at this version

    @property
    def version(self) -> int:
        """Updates the parameters have seen."""
        return self.update.version

    @property
    def phase(self) -> str:
        """What the training is doing, in words."""
        return self._course.phase(self._round, self.version)

    @property
    def look_s(self) -> float:
        """When `tick` is wanted next, beside the leases; infinite while nobody can be late."""
        return math.inf if self._round is None else self.handout.look_s

    # Events.

    def worker_joined(self, worker_id: str, num_cpus: int, now: float) -> list[Effect]:
        """Take in a worker whose stream is open."""
        effects = self.worker_lost(worker_id, "it came back", now) if worker_id in self.workers else []
        worker = self.workers[worker_id] = WorkerView(worker_id, num_cpus, now)
        current = self._round
        if current is None:
            return effects + self._advance(now)
        self._course.waiting.end(now)
        effects += self._staffing.join(worker, current, now)
        return effects + self.disputes.ask(current, now) + self._staffing.speculate(current, now)

    def worker_lost(self, worker_id: str, reason: str, now: float) -> list[Effect]:
        """Give up a worker; its open shards go to others, who compute them again from the same version."""
        return self._do_without(worker_id, Notice(WARNING, words.lost(worker_id, reason)), now)

    def worker_leaving(self, worker_id: str, now: float) -> list[Effect]:
        """Let a worker go that leaves in order."""
        return self._do_without(worker_id, Notice(INFO, f"worker {worker_id} has left"), now)

    def worker_behind(self, worker_id: str) -> list[Effect]:
        """Let a worker drop what it lags behind with; it gets the newest version whole when it is next given work."""
        worker = self.workers.get(worker_id)
        return [] if worker is None else self._staffing.fall_behind(worker)

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
        if worker is None or current is None or not self._intake.wants(chunk, current):
            self.num_duplicates += 1
            return []
        effects: list[Effect] = []
        try:
            root = self._intake.put(chunk, current)
        except DuplicateValueError:
            self.num_duplicates += 1
            dispute = current.witnesses.again(worker_id, chunk)
            if dispute is not None:
                effects = self._carry_out(self.disputes.weigh(current, chunk, dispute, now), now)
        except ValueError as error:
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
        self._examination.found(worker, finding, current, now)
        return self._examined(current, now) if current.reduction.complete else self._staffing.speculate(current, now)

    def tick(self, now: float) -> list[Effect]:
        """Look at the leases and deadlines."""
        effects: list[Effect] = []
        for worker_id in self.workers.silent(now):
            effects += self._give_up(worker_id, f"silent for more than {self.workers.lease_s:g} s", now, refused=False)
        if self._round is not None:
            for worker_id in self.handout.stuck(self._round, now):
                effects += self._give_up(worker_id, "its heart beats, but it delivers nothing", now)
        if self._round is not None:
            effects += self._staffing.speculate(self._round, now)
            outcome = self.disputes.decide(self._round, now)
            effects += [] if outcome is None else self._end(outcome)
        effects += self._hold(now)
        outcome = self._course.overdue(now)
        return effects if outcome is None else effects + self.abandon(outcome)

    def halt(self, outcome: Outcome, now: float) -> list[Effect]:
        """End between two versions, because a person or the server wants it."""
        self._course.halt(outcome, now)
        return self._advance(now) if self._round is None or self._course.waiting.waits else []

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
        effects += self.keeping.look(now)
        following = self._course.next(self.version, now)
        if following is None:
            return effects
        return effects + (self._end(following) if isinstance(following, Outcome) else self._begin(following, now))

    def _begin(self, kind: Kind, now: float) -> list[Effect]:
        last_of_epoch = self.progress.step_in_epoch + 1 == self.plan.steps_per_epoch
        self.update.measure_layers = last_of_epoch  # once an epoch: it takes a pass over the gradient
        current = self._round = Round(kind, self.version, self._intake.begin(kind), now)
        if self.spec.audit and kind != EXAMINE:
            current.audited, current.witnesses.audits = True, self._arbiter.audits(self.version)
        return self._staffing.begin(current, now)

    def _end(self, outcome: Outcome) -> list[Effect]:
        self.ended = True
        self._round = None
        self._course.waiting.stop()
        return [Ended(outcome)]

    def _fail(self, error_type: service_pb2.ErrorType.ValueType, message: str) -> list[Effect]:
        return self._end(Outcome(service_pb2.JOB_STATE_FAILED, error_type=error_type, message=message))

    # Within a round.

    def _root(self, current: Round, chunk: NodeChunk, root: Value, now: float) -> list[Effect]:
        try:
            messages = self._intake.use(root, chunk.chunk_index, current)
        except NotFiniteError as error:
            return self._not_finite(current, str(error), now)
        except StepError as error:
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, str(error))
        return [Send(self.workers.synced, self.version + 1, message) for message in messages]

    def _arrived(self, current: Round, worker: WorkerView, now: float) -> list[Effect]:
        """Count a chunk of a worker's shards; close the round with the last one."""
        idle = self.handout.arrived(worker, now)
        if self._round is not current:
            return []
        if current.is_over:
            return self._close(current, now)
        if current.whole:
            return self.disputes.ask(current, now)
        return self._staffing.speculate(current, now) if idle else []

    def _hold(self, now: float) -> list[Effect]:
        """Stop listening to workers that are far ahead, and begin again."""
        return self._holding.look(0 if self._round is None else self._round.reduction.num_waiting_bytes, now)

    def _close(self, current: Round, now: float) -> list[Effect]:
        assert current.sums is not None
        effects = self._staffing.close(current, now)
        self._course.waiting.progress()
        close = self._close_evaluation if current.evaluates else self._close_version
        return effects + close(current, current.sums, now)

    def _close_version(self, current: Round, sums: Sums, now: float) -> list[Effect]:
        step_s = now - current.started_s
        record = self.progress.step_done(self.update, self.plan, sums, step_s, current.seconds(step_s))
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
            self.keeping.best = self.update.parameters
        self._round = None
        return [EpochDone(record), *self._advance(now)]

    # What goes wrong.

    def _not_finite(self, current: Round, problem: str, now: float) -> list[Effect]:
        refusal = self._examination.refuse(current, problem)
        if refusal is not None:
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, refusal)
        text = f"step {self.version}: {problem}; its shards are computed again one by one to find out where"
        begun = self._begin(EXAMINE, now)
        assert self._round is not None
        self._round.problem = problem
        return [Notice(WARNING, text), *begun]

    def _examined(self, current: Round, now: float) -> list[Effect]:
        refusal = self._examination.conclude(current)
        if refusal is not None:
            return self._fail(service_pb2.ERROR_TYPE_NOT_FINITE, refusal)
        self.update.restart()
        text = f"step {self.version}: {current.problem}, but that of each shard is; the step is computed again"
        return [Notice(WARNING, text), *self._begin(STEP, now)]

    def _carry_out(self, ruling: Ruling, now: float) -> list[Effect]:
        effects, wrong, reason, rewind = ruling
        if not rewind:
            return effects + [effect for worker_id in wrong for effect in self._give_up(worker_id, reason, now)]
        end = self._end(Outcome(service_pb2.JOB_STATE_RUNNING, message=rewind))  # at once: no wrong version is closed
        for worker_id in wrong:
            if self.workers.pop(worker_id, None):
                effects.append(Notice(WARNING, words.lost(worker_id, reason)))
            effects.append(Dismiss(worker_id, reason, refused=True))
        return [*effects, Notice(WARNING, rewind), *end]

    def _give_up(self, worker_id: str, reason: str, now: float, *, refused: bool = True) -> list[Effect]:
        return [*self.worker_lost(worker_id, reason, now), Dismiss(worker_id, reason, refused=refused)]

    def _do_without(self, worker_id: str, notice: Notice, now: float) -> list[Effect]:
        worker, current = self.workers.pop(worker_id, None), self._round
        if worker is None or self.ended:
            return []
        if current is None:
            return [notice]
        effects = [notice, *self._staffing.do_without(worker, current, now)]
        if not self.workers:
            self._course.waiting.begin(now)
            return effects + (self._advance(now) if self._course.halts else [])
        return effects + self.disputes.ask(current, now)
