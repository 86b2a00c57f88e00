"""Has nodes computed again: some twice on purpose, and those of which copies differ, until it is known who is right."""

import numpy as np

from lockstep_proto.tree import Node
from lockstep_proto.v1 import job_pb2
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.handout import Gift, Handout
from lockstep_server.rounds import Round
from lockstep_server.witnesses import Dispute

AUDIT_USE = 4  # of these random numbers; the results of a job do not depend on them


class UndecidedError(Exception):
    """All workers have computed a node as often as helps, and nobody can tell who is right."""

    def __init__(self, node: Node, dispute: Dispute) -> None:
        super().__init__()
        self.node, self.dispute = node, dispute


class Arbiter:
    """Says who computes what again. The round waits for all of it."""

    def __init__(self, spec: job_pb2.JobSpec, crew: Crew, handout: Handout) -> None:
        self._spec = spec
        self._crew = crew
        self._handout = handout

    def audit(self, current: Round, version: int, now: float) -> list[Gift]:
        """Have a sample of the nodes computed twice: each with probability `spec.audit`, anew in every round."""
        if not self._spec.audit:
            return []
        given = [(worker, node) for worker in self._crew.values() for node in worker.nodes(self._spec.shards)]
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([AUDIT_USE, self._spec.seed, version])))
        chosen = random.random(len(given)) < self._spec.audit
        return [
            self._second_copy(worker, node, current, now)
            for (worker, node), is_chosen in zip(given, chosen, strict=True)
            if is_chosen
        ]

    def ask(self, current: Round, now: float) -> list[Gift]:
        """Have somebody compute each disputed node once more that nobody is computing. Raises UndecidedError."""
        gifts = []
        for node, dispute in list(current.witnesses.unasked()) if self._crew else ():
            dispute.asked = dispute.next_witness(list(self._crew))
            if dispute.asked is None:
                raise UndecidedError(node, dispute)
            gifts.append(self._handout.give(self._crew[dispute.asked], [node], current, now))
        return gifts

    def _second_copy(self, worker: WorkerView, node: Node, current: Round, now: float) -> Gift:
        """Give a node to another worker, the one with the least to do; to the same one if there is no other."""
        others = [other for other in self._crew.values() if other is not worker]
        second = min(others, key=lambda other: (other.pace.slow, other.num_due), default=worker)
        for either in (worker, second):
            current.witnesses.wait_for(either.worker_id, node, current.num_chunks)
        return self._handout.give(second, [node], current, now)
