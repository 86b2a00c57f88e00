"""Who sent which value of a node, and what becomes of two copies that differ.

Every accepted chunk of a node leaves a 64-bit checksum until the round ends, and each further copy is compared with
it. Copies are bit-identical by construction, so a difference means that somebody computed or sent it wrongly: further
copies decide. A value that two workers agree on is right; where one worker is all there is, two of its three copies.
"""

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from lockstep_proto.codec import NodeChunk
from lockstep_proto.tree import Node

VOTES_PER_WORKER = 2  # with two workers that contradict each other, each is asked once more; then nobody can tell


def checksum(chunk: NodeChunk) -> int:
    """Return a 64-bit checksum of a chunk's values and sums."""
    return xxhash.xxh3_64_intdigest(chunk.data, seed=xxhash.xxh3_64_intdigest(struct.pack("<3d", *chunk.sums)))


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
    """The copies of one round's nodes. The round does not end while a dispute is open or a copy is awaited."""

    disputes: dict[Node, Dispute] = field(default_factory=dict)
    _accepted: dict[tuple[Node, int], Vote] = field(default_factory=dict)
    _awaited: dict[tuple[str, Node], int] = field(default_factory=dict)  # chunks that have yet to come

    @property
    def content(self) -> bool:
        """Whether nothing more is needed of them."""
        return not self.disputes and not self._awaited

    def accepted(self, worker_id: str, chunk: NodeChunk) -> None:
        """Take note of a copy that counts."""
        self._accepted[chunk.node, chunk.chunk_index] = Vote(worker_id, checksum(chunk))
        if self._awaited:
            self._came(worker_id, chunk.node)

    def again(self, worker_id: str, chunk: NodeChunk) -> Dispute | None:
        """Compare a further copy with the one that counts. Return the dispute that it begins or goes on with."""
        if self._awaited:
            self._came(worker_id, chunk.node)
        first = self._accepted.get((chunk.node, chunk.chunk_index))
        if first is None:
            return None  # it is part of a node above
        dispute = self.disputes.get(chunk.node)
        vote = Vote(worker_id, checksum(chunk))
        if dispute is None:
            if vote.checksum == first.checksum:
                return None
            dispute = self.disputes[chunk.node] = Dispute(chunk.chunk_index, [first, vote])
            return dispute
        if dispute.chunk_index != chunk.chunk_index or dispute.asked != worker_id:
            return None
        dispute.asked = None
        dispute.votes.append(vote)
        return dispute

    def settle(self, node: Node) -> None:
        """Close a dispute."""
        del self.disputes[node]

    def wait_for(self, worker_id: str, node: Node, num_chunks: int) -> None:
        """Keep the round open until a worker's copy of a node is there."""
        self._awaited[worker_id, node] = self._awaited.get((worker_id, node), 0) + num_chunks

    def lost(self, worker_id: str) -> None:
        """Expect nothing more from a worker."""
        self._awaited = {key: left for key, left in self._awaited.items() if key[0] != worker_id}
        for dispute in self.disputes.values():
            if dispute.asked == worker_id:
                dispute.asked = None

    def unasked(self) -> Iterator[tuple[Node, Dispute]]:
        """Yield the disputes that nobody is computing for."""
        return ((node, dispute) for node, dispute in self.disputes.items() if dispute.asked is None)

    def _came(self, worker_id: str, node: Node) -> None:
        left = self._awaited.get((worker_id, node))
        if left is not None:
            self._awaited[worker_id, node] = left - 1
            if left == 1:
                del self._awaited[worker_id, node]
