"""Has nodes computed again: some twice on purpose, and those of which copies differ, until it is known who is right."""

import struct
from collections.abc import Callable

import xxhash

from lockstep_proto.tree import Node
from lockstep_proto.v1 import job_pb2
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.handout import Gift, Handout
from lockstep_server.rounds import Round

AUDIT_USE = 4  # seed of these checksums; the results of a job do not depend on them


class Arbiter:
    """Says who computes what again. The round waits for all of it."""

    def __init__(self, spec: job_pb2.JobSpec, crew: Crew, handout: Handout) -> None:
        self._spec = spec
        self._crew = crew
        self._handout = handout

    def audits(self, version: int) -> Callable[[Node], bool]:
        """Say which nodes of a round are computed twice: each with probability `spec.audit`, anew in every round."""
        spec = self._spec
        if not 0.0 < spec.audit < 1.0:
            return lambda node: spec.audit > 0.0
        limit = int(spec.audit * 2.0**64)
        return lambda node: xxhash.xxh3_64_intdigest(struct.pack("<QQII", spec.seed, version, *node), AUDIT_USE) < limit

    def audit(self, current: Round, now: float) -> list[Gift]:
        """Have a second copy of audited nodes computed beside the first, so that the round need not wait for long."""
        audits = current.witnesses.audits
        if audits is None:
            return []
        given = [(worker, node) for worker in self._crew.values() for node in worker.nodes(self._spec.shards)]
        return [self._second_copy(worker.worker_id, node, current, now) for worker, node in given if audits(node)]

    def ask(self, current: Round, now: float) -> list[Gift]:
        """Have disputed nodes computed once more, and audited ones a second time, where nobody does.

        A dispute in which everybody has been asked as often as helps stays unasked, until another worker comes.
        """
        if not self._crew:
            return []
        gifts = []
        for node, dispute in list(current.witnesses.unasked()):
            dispute.asked = dispute.next_witness(list(self._crew))
            if dispute.asked is not None:
                gifts.append(self._give(self._crew[dispute.asked], node, current, now))
        if current.whole:
            alone = sorted(current.witnesses.unconfirmed())
            gifts += [self._second_copy(first, node, current, now) for node, first in alone]
        return gifts

    def _second_copy(self, first: str, node: Node, current: Round, now: float) -> Gift:
        """Give a node to another worker than the first, the one with the least to do; to any if there is no other."""
        others = [worker for worker in self._crew.values() if worker.worker_id != first]
        second = min(others or self._crew.values(), key=lambda worker: (worker.pace.slow, worker.num_due))
        return self._give(second, node, current, now)

    def _give(self, worker: WorkerView, node: Node, current: Round, now: float) -> Gift:
        if not current.audited:  # else the handout takes note of all that is given
            current.witnesses.given(worker.worker_id, node, current.num_chunks)
        return self._handout.give(worker, [node], current, now)
