"""Brings the shards of a round to workers: what the handout decides, sent to them and told to people."""

from collections.abc import Iterable

from lockstep_server import words
from lockstep_server.arbiter import Arbiter
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.dispatch import Dispatch
from lockstep_server.effects import INFO, WARNING, Effect, Forget, Notice
from lockstep_server.handout import Gift, Handout
from lockstep_server.rounds import Round

TELL_S = 10.0  # people hear of late workers so often; the metrics count each time


class Staffing:
    """Says what workers are sent, and what people hear of it."""

    def __init__(self, crew: Crew, handout: Handout, arbiter: Arbiter, dispatch: Dispatch) -> None:
        self._crew = crew
        self._handout = handout
        self._arbiter = arbiter
        self._dispatch = dispatch
        self._told_late_s = self._told_share_s = -TELL_S

    def begin(self, current: Round, now: float) -> list[Effect]:
        """Give out all shards of a new round."""
        effects = self.hand_over(self._handout.begin(current, now), current)
        if current.audited:
            effects += self.hand_over(self._arbiter.audit(current, now), current)
        for worker in self._crew.values():
            if not worker.ranges and worker.synced:
                effects += self.fall_behind(worker)
        return effects

    def join(self, worker: WorkerView, current: Round, now: float) -> list[Effect]:
        """Give a newcomer what nobody has, or what it needs to begin when it is given some."""
        gifts = self._handout.adopt(worker, current, now)
        return self.hand_over(gifts, current) if gifts else [*self._dispatch.welcome(Gift(worker, []))]

    def do_without(self, worker: WorkerView, current: Round, now: float) -> list[Effect]:
        """Give the shards of a worker that has gone to others."""
        current.witnesses.lost(worker.worker_id)
        return self.hand_over(self._handout.lost(worker.ranges, current, now), current)

    def fall_behind(self, worker: WorkerView) -> list[Effect]:
        """Let a worker drop what it lags behind with; it gets the newest version whole when it is next given work."""
        worker.synced = False
        return [Forget(worker.worker_id)]

    def speculate(self, current: Round, now: float) -> list[Effect]:
        """Give shards that are late to idle workers, too."""
        late = self._handout.late(now)
        if not late:
            return []
        gifts = self._handout.speculate(current, now)
        effects = self.hand_over(gifts, current)
        if gifts and now - self._told_late_s >= TELL_S:
            self._told_late_s = now
            effects.append(Notice(WARNING, words.given_twice(late, gifts, current)))
        return effects

    def close(self, current: Round, now: float) -> list[Effect]:
        """Take in how long everybody took. Tell of workers whose share of the shards changes for it."""
        changed = self._handout.closed(current, now)
        if not changed or now - self._told_share_s < TELL_S:
            return []
        self._told_share_s = now
        return [Notice(WARNING if worker.pace.slow else INFO, words.share_changed(worker)) for worker in changed]

    def hand_over(self, gifts: Iterable[Gift], current: Round) -> list[Effect]:
        """Send each worker what it was given."""
        return [*self._dispatch.hand_over(gifts, current.kind)]
