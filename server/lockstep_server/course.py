"""What follows a version: a step, an evaluation, a wait for workers, or the end."""

from lockstep_proto.v1 import job_pb2, service_pb2
from lockstep_server.crew import Crew
from lockstep_server.progress import Plan, Progress, describe_stop, stop_reason
from lockstep_server.records import Outcome
from lockstep_server.rounds import EVALUATE, EXAMINE, STEP, Kind, Round
from lockstep_server.waiting import Waiting

HALT_S = 10.0  # a stop or pause waits so long for the step under way; then it ends at the version before it


class Course:
    """Decides for one attempt."""

    def __init__(self, spec: job_pb2.JobSpec, plan: Plan, progress: Progress, crew: Crew, now: float) -> None:
        self._spec = spec
        self._plan = plan
        self._progress = progress
        self._crew = crew
        self.waiting = Waiting(now)  # for workers
        self._begun = False
        self._halt: tuple[Outcome, float] | None = None  # and when it was asked for

    @property
    def halts(self) -> bool:
        """Whether it is to end at the next version."""
        return self._halt is not None

    def phase(self, current: Round | None, version: int) -> str:
        """Return what is done, or waited for, in words."""
        if self.waiting.waits:
            return self._lacks_workers
        if current is not None and current.evaluates:
            return f"evaluating after epoch {self._progress.epoch + 1} of {self._plan.num_epochs}"
        step = f"step {min(version + 1, self._plan.num_steps)}"
        if current is not None and current.undecided_s is not None:
            return f"waiting for a worker to tell which of two copies is right, at {step}"
        examines = current is not None and current.kind == EXAMINE
        return f"{'examining ' if examines else ''}{step} of {self._plan.num_steps}"

    @property
    def _lacks_workers(self) -> str:
        return f"waiting for workers: {len(self._crew)} of {self._num_needed}"

    @property
    def _num_needed(self) -> int:
        return 1 if self._begun else self._spec.workers.min

    def halt(self, outcome: Outcome, now: float) -> None:
        """End at the next version, because a person or the server wants it."""
        self._halt = outcome, now

    def next(self, version: int, now: float) -> Outcome | Kind | None:
        """Return what follows this version: the end, or a kind of round; None while there are too few workers."""
        if self._halt is not None:
            return self._halt[0]
        reason = stop_reason(self._spec, self._plan, self._progress, version)
        if reason is not None and not self._progress.evaluation_due:
            message = describe_stop(self._spec, self._progress, reason)
            return Outcome(service_pb2.JOB_STATE_SUCCEEDED, reason, message=message)
        if len(self._crew) < self._num_needed:
            self.waiting.begin(now)
            return None
        self._begun = True
        self.waiting.end(now)
        return EVALUATE if self._progress.evaluation_due else STEP

    def overdue(self, now: float) -> Outcome | None:
        """Return the end that is due by the clock, whatever is under way."""
        if self._halt is not None and now - self._halt[1] > HALT_S:
            return self._halt[0]
        wait_s = self._spec.workers.wait_s
        if self.waiting.spent_s(now) <= wait_s:
            return None
        message = f"{self._lacks_workers} for more than {wait_s:g} s (workers.wait_s)"
        kind = service_pb2.ERROR_TYPE_NO_WORKERS
        return Outcome(service_pb2.JOB_STATE_FAILED, error_type=kind, message=message)
