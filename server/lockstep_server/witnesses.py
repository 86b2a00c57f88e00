"""Who sent which value of a node, and what becomes of two copies that differ.

Every accepted chunk of a node leaves a 64-bit checksum until the round ends, and each further copy is compared with
it. Copies are bit-identical by construction, so a difference means that somebody computed or sent it wrongly: further
copies decide. A value that two workers agree on is right; where one worker is all there is, two of its three copies.
"""

import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from lockstep_proto.codec import NodeChunk
from lockstep_proto.tree import Node

_SUMS = struct.Struct("<3d")
VOTES_PER_WORKER = 2  # with two workers that contradict each other, each is asked once more; then nobody can tell


def checksum(chunk: NodeChunk) -> int:
    """Return a 64-bit checksum of a chunk's values and sums."""
    return xxhash.xxh3_64_intdigest(chunk.data, xxhash.xxh3_64_intdigest(_SUMS.pack(*chunk.sums)))


class Vote(NamedTuple):
    """One copy of a chunk."""

    worker_id: str
    checksum: int


class Verdict(NamedTuple):
    """What the copies of a node have shown."""

    chunk_index: int
    wrong: list[str]  # workers that sent what is wrong
    applied_is_wrong: bool  # whether the copy that counts is one of these


@dataclass
class Dispute:
    """A node of which two copies differ."""

    chunk_index: int
    votes: list[Vote]
    asked: str | None = None  # the worker that computes it once more

    def verdict(self) -> Verdict | None:
        """Return who is wrong, once that is known."""
        by_value: dict[int, list[str]] = {}
        for vote in self.votes:
            by_value.setdefault(vote.checksum, []).append(vote.worker_id)
        alone = len({vote.worker_id for vote in self.votes}) == 1
        for value, workers in by_value.items():
            if len(set(workers)) >= 2 or (alone and len(workers) >= 2 and len(self.votes) >= 3):
                wrong = {vote.worker_id for vote in self.votes if vote.checksum != value}
                return Verdict(self.chunk_index, sorted(wrong), self.votes[0].checksum != value)
        return None

    def next_witness(self, worker_ids: Collection[str]) -> str | None:
        """Return who is to compute the node once more: one who has done so least; None if all have done enough."""
        counts = dict.fromkeys(worker_ids, 0)
        for vote in self.votes:
            if vote.worker_id in counts:
                counts[vote.worker_id] += 1
        worker_id = min(counts, key=lambda name: counts[name])
        enough = VOTES_PER_WORKER if len(counts) > 1 else VOTES_PER_WORKER + 1
        return worker_id if counts[worker_id] < enough else None


@dataclass
class Witnesses:
    """The copies of one round's nodes. The round does not end while a dispute is open or an audited node has one copy.

    `audits` says of a node whether a second copy must confirm the one that counts, whoever computed it.
    """

    audits: Callable[[Node], bool] | None = None
    disputes: dict[Node, Dispute] = field(default_factory=dict)
    _accepted: dict[tuple[Node, int], Vote] = field(default_factory=dict)
    _unconfirmed: dict[Node, set[int]] = field(default_factory=dict)  # chunks that a second copy has to confirm
    _num_given: dict[tuple[str, Node], int] = field(default_factory=dict)  # how often a worker was to compute a node
    _due: dict[tuple[str, Node], int] = field(default_factory=dict)  # chunks of it that have yet to come

    @property
    def content(self) -> bool:
        """Whether nothing more is needed of them."""
        return not self.disputes and not self._unconfirmed

    def given(self, worker_id: str, node: Node, num_chunks: int) -> None:
        """Take note that a worker is to compute a node."""
        self._num_given[worker_id, node] = self._num_given.get((worker_id, node), 0) + 1
        self._due[worker_id, node] = self._due.get((worker_id, node), 0) + num_chunks

    def accepted(self, worker_id: str, chunk: NodeChunk) -> None:
        """Take note of a copy that counts."""
        self._came(worker_id, chunk.node)
        self._accepted[chunk.node, chunk.chunk_index] = Vote(worker_id, checksum(chunk))
        if self.audits is not None and self.audits(chunk.node):
            self._doubt(chunk.node, chunk.chunk_index)

    def again(self, worker_id: str, chunk: NodeChunk) -> Dispute | None:
        """Compare a further copy with the one that counts. Return the dispute that it begins or goes on with."""
        self._came(worker_id, chunk.node)
        first = self._accepted.get((chunk.node, chunk.chunk_index))
        if first is None:
            return None  # it is part of a node above
        vote, dispute = Vote(worker_id, checksum(chunk)), self.disputes.get(chunk.node)
        if dispute is not None and dispute.chunk_index == chunk.chunk_index:
            if dispute.asked != worker_id:
                return None
            dispute.asked = None
            dispute.votes.append(vote)
            return dispute
        if vote.checksum == first.checksum:
            if worker_id != first.worker_id or self._num_given.get((worker_id, chunk.node), 0) > 1:
                self._confirm(chunk.node, chunk.chunk_index)
            return None
        if dispute is not None:
            self._doubt(chunk.node, chunk.chunk_index)  # one thing after the other
            return None
        dispute = self.disputes[chunk.node] = Dispute(chunk.chunk_index, [first, vote])
        return dispute

    def settle(self, node: Node) -> None:
        """Close a dispute in which the copy that counts was found right."""
        self._confirm(node, self.disputes.pop(node).chunk_index)

    def lost(self, worker_id: str) -> None:
        """Expect nothing more from a worker."""
        self._due = {key: left for key, left in self._due.items() if key[0] != worker_id}
        for dispute in self.disputes.values():
            if dispute.asked == worker_id:
                dispute.asked = None

    def unasked(self) -> Iterator[tuple[Node, Dispute]]:
        """Yield the disputes that nobody is computing for."""
        return ((node, dispute) for node, dispute in self.disputes.items() if dispute.asked is None)

    def unconfirmed(self) -> Iterator[tuple[Node, str]]:
        """Yield the nodes of which nobody is computing the second copy, and who computed the first."""
        computed = {node for _, node in self._due} | self.disputes.keys()
        for node in self._unconfirmed.keys() - computed if self._unconfirmed else ():
            yield node, self._accepted[node, min(self._unconfirmed[node])].worker_id

    def _doubt(self, node: Node, chunk_index: int) -> None:
        self._unconfirmed.setdefault(node, set()).add(chunk_index)

    def _confirm(self, node: Node, chunk_index: int) -> None:
        left = self._unconfirmed.get(node)
        if left is not None:
            left.discard(chunk_index)
            if not left:
                del self._unconfirmed[node]

    def _came(self, worker_id: str, node: Node) -> None:
        left = self._due.get((worker_id, node)) if self._due else None
        if left is not None:
            self._due[worker_id, node] = left - 1
            if left == 1:
                del self._due[worker_id, node]
