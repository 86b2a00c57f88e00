"""The sum of a round's nodes, chunk by chunk, along the fixed tree.

A node's value is set once for each chunk, from a message or from its two children. What arrives below a set node, or
again, is dropped; what is below a node that arrives is forgotten. All of them have the same bits, so nothing depends
on which one counts. Only values that wait for their siblings are kept: one that is added to another, or is the root,
lasts no longer than its use. Where values travel as bfloat16, they are unpacked when they arrive and every sum is
rounded.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, tree
from lockstep_proto.codec import Sums
from lockstep_proto.tree import Node

Array = npt.NDArray[Any]
_Step = tuple[Node, bool, Node]  # from a node to its parent: its sibling, whether it is the left one, the parent
_Way = tuple[tuple[Node, ...], list[_Step]]  # the nodes from the root down to a node, and the steps up again


class NotANodeError(ValueError):
    """A value was sent for a range of shards that the fixed tree does not have."""


class Value(NamedTuple):
    """The sums and the gradient of a node for one chunk. `gradient` may be written only where `owned`."""

    sums: Sums
    gradient: Array
    owned: bool = False


_GIVEN_AWAY = Value(Sums(0.0, 0.0, 0.0), np.empty(0))  # stands for a root, which is its user's alone


class Reduction:
    """The trees of all chunks of one round (a step, or an evaluation with one empty chunk).

    `packed`: whether gradients arrive as bfloat16.
    """

    def __init__(self, num_shards: int, num_chunks: int, *, packed: bool = False) -> None:
        self.num_shards = num_shards
        self.root: Node = (0, num_shards)
        self._chunks: list[dict[Node, Value]] = [{} for _ in range(num_chunks)]  # what there is of each one's tree
        self._open = num_chunks
        self.num_waiting_bytes = 0  # of values that wait for their siblings
        self._packed = packed
        self._ways: dict[Node, _Way] = {}  # of the nodes that have come
        self._spare: list[Array] = []

    @property
    def num_chunks(self) -> int:
        """Chunks of a node's value."""
        return len(self._chunks)

    @property
    def complete(self) -> bool:
        """Whether every chunk has its root."""
        return self._open == 0

    def put(self, node: Node, chunk_index: int, sums: Sums, gradient: Array) -> Value | None:
        """Add the value of a node. Return the root if this completes it.

        Raises NotANodeError for a range that is no node, IndexError for a chunk that is not there, and
        DuplicateValueError for a value that is known already.
        """
        nodes, way_up = self._ways.get(node) or self._way(node)
        values = self._chunks[chunk_index]
        if not values.keys().isdisjoint(nodes):
            raise DuplicateValueError
        if node[1] - node[0] > 1:
            self._forget_below(values, node)
        value = self._unpacked(sums, gradient) if self._packed else Value(sums, gradient)
        for sibling, is_left, parent in way_up:
            other = values.pop(sibling, None)
            if other is None:
                break
            self.num_waiting_bytes -= other.gradient.nbytes
            value = self._add(value, other) if is_left else self._add(other, value)
            node = parent
        if node != self.root:
            values[node] = value
            self.num_waiting_bytes += value.gradient.nbytes
            return None
        values[node] = _GIVEN_AWAY
        self._open -= 1
        return value

    def missing(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """Return the ranges of shards within [lo, hi) that some chunk still lacks."""
        lacking = [False] * (hi - lo)
        for chunk in self._chunks:
            have = [False] * (hi - lo)
            for a, b in chunk:
                for shard in range(max(a, lo), min(b, hi)):
                    have[shard - lo] = True
            lacking = [lacks or not has for lacks, has in zip(lacking, have, strict=True)]
        return _runs([lo + i for i, lacks in enumerate(lacking) if lacks])

    def release(self, value: Value) -> None:
        """Give back a root whose gradient has been used; its buffer serves a later sum."""
        if value.owned:
            self._spare.append(value.gradient)

    def reset(self) -> None:
        """Begin the next round with the buffers of this one."""
        for chunk in self._chunks:
            chunk.clear()
        self._open = len(self._chunks)
        self.num_waiting_bytes = 0

    def _way(self, node: Node) -> _Way:
        nodes = tree.path(*node, self.num_shards)
        if nodes is None:
            raise NotANodeError(f"[{node[0]}, {node[1]}) is no node of the tree of {self.num_shards} shards")
        way = self._ways[node] = nodes, [_step(below, above) for above, below in reversed(list(pairwise(nodes)))]
        return way

    @np.errstate(all="ignore")  # what is not finite is found at the root
    def _add(self, left: Value, right: Value) -> Value:
        if left.owned:
            out = left.gradient
            if right.owned:
                self._spare.append(right.gradient)
        elif right.owned:
            out = right.gradient
        else:
            out = self._buffer(left.gradient.size, left.gradient.dtype)
        np.add(left.gradient, right.gradient, out=out)
        if self._packed:
            bfloat16.round_in_place(out)
        return Value(left.sums.plus(right.sums), out, owned=True)

    def _unpacked(self, sums: Sums, packed: Array) -> Value:
        out = self._buffer(packed.size, np.dtype(np.float32))
        bfloat16.unpack(packed, out)
        return Value(sums, out, owned=True)

    def _buffer(self, size: int, dtype: np.dtype[Any]) -> Array:
        for i, spare in enumerate(self._spare):
            if spare.size == size:
                return self._spare.pop(i)
        return np.empty(size, dtype)

    def _forget_below(self, values: dict[Node, Value], node: Node) -> None:
        for below in [other for other in values if node[0] <= other[0] and other[1] <= node[1]]:
            value = values.pop(below)
            self.num_waiting_bytes -= value.gradient.nbytes
            if value.owned:
                self._spare.append(value.gradient)


class DuplicateValueError(ValueError):
    """A value arrived that is known already, itself or as part of a node above it."""


def _step(node: Node, parent: Node) -> _Step:
    middle = tree.split(*parent)
    is_left = node[0] == parent[0]
    return (middle, parent[1]) if is_left else (parent[0], middle), is_left, parent


def _runs(shards: list[int]) -> list[tuple[int, int]]:
    """Join neighbouring shards to ranges."""
    runs: list[tuple[int, int]] = []
    for shard in shards:
        if runs and runs[-1][1] == shard:
            runs[-1] = (runs[-1][0], shard + 1)
        else:
            runs.append((shard, shard + 1))
    return runs
