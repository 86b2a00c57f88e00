"""What becomes of copies of a node that differ: people hear of it, others compute it once more, and the wrong one goes.

Witnesses compare, the arbiter says who computes again; here is what follows from it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lockstep_proto.codec import NodeChunk
from lockstep_proto.tree import Node
from lockstep_proto.v1 import service_pb2
from lockstep_server import words
from lockstep_server.arbiter import Arbiter
from lockstep_server.crew import Crew
from lockstep_server.effects import WARNING, Effect, Notice
from lockstep_server.records import Outcome
from lockstep_server.rounds import Round
from lockstep_server.staffing import Staffing
from lockstep_server.update import ParameterUpdate
from lockstep_server.witnesses import Dispute

DECIDE_S = 60.0  # a dispute waits so long for another worker: one that was lost may have been replaced by then


class Ruling(NamedTuple):
    """Workers that are to be expelled, if any, and why."""

    effects: list[Effect]
    wrong: Sequence[str] = ()
    reason: str = ""
    rewind: str = ""  # why the job is to rewind, if so: what they sent has been applied


class Disputes:
    """The disputes of one attempt."""

    def __init__(self, crew: Crew, arbiter: Arbiter, staffing: Staffing, update: ParameterUpdate) -> None:
        self._crew = crew
        self._arbiter = arbiter
        self._staffing = staffing
        self._update = update
        self.num_corrupt = 0  # nodes of which two copies differed

    def weigh(self, current: Round, chunk: NodeChunk, dispute: Dispute, now: float) -> Ruling:
        """Go on with a dispute: tell of a new one, ask for further copies, or say whose are wrong."""
        effects: list[Effect] = []
        where = words.place_of(chunk.node, dispute.chunk_index, current, self._update)
        if len(dispute.votes) == 2:
            self.num_corrupt += 1
            effects.append(Notice(WARNING, words.copies_differ(where, dispute)))
        verdict = dispute.verdict()
        if verdict is None:
            return Ruling(effects + self.ask(current, now))
        current.witnesses.settle(chunk.node)
        reason = f"it computed {where} wrongly, against the copies of others; it is expelled"
        rewind = f"{where} was applied wrongly; the job rewinds to its last checkpoint"
        return Ruling(effects, verdict.wrong, reason, rewind if verdict.applied_is_wrong else "")

    def ask(self, current: Round, now: float) -> list[Effect]:
        """Have disputed nodes computed once more; where nobody can tell who is right, the job waits for another."""
        effects = self._staffing.hand_over(self._arbiter.ask(current, now), current)
        undecided = next(current.witnesses.unasked(), None) if self._crew else None
        if undecided is None:
            current.undecided_s = None
        elif current.undecided_s is None:
            current.undecided_s = now
            text = f"{self._undecided(current, *undecided)}; waiting for another worker"
            effects.append(Notice(WARNING, text))
        return effects

    def decide(self, current: Round, now: float) -> Outcome | None:
        """End the job when no further worker has come to tell who is right.

        If one of them is gone, what it sent need not come again: then the steps from the last checkpoint on are
        computed anew. No version is closed before that, so nobody's word alone has decided anything.
        """
        undecided = next(current.witnesses.unasked(), None)
        if undecided is None or current.undecided_s is None or now - current.undecided_s <= DECIDE_S:
            return None
        message = self._undecided(current, *undecided)
        if any(vote.worker_id not in self._crew for vote in undecided[1].votes):
            return Outcome(service_pb2.JOB_STATE_RUNNING, message=message)
        kind = service_pb2.ERROR_TYPE_CORRUPTION
        return Outcome(service_pb2.JOB_STATE_FAILED, error_type=kind, message=message)

    def _undecided(self, current: Round, node: Node, dispute: Dispute) -> str:
        where = words.place_of(node, dispute.chunk_index, current, self._update)
        return f"{where}: the copies of {words.voters(dispute)} differ, and nobody can tell which is right"
