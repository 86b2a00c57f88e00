"""Sums the gradients of shards to the top nodes of a worker's ranges, part by part, while they are computed.

A part of the flat vector is one or more bands (lockstep_worker.bands), at the last of which a chunk can go out. Each
part has its own tree: as soon as two siblings have a part, it is added into the left one's buffer, whichever thread
comes second. What reaches a top node completes chunks, in the order of the vector, and they are handed out at once.

Where values travel as bfloat16 (lockstep_proto.bfloat16), a part is rounded whenever it is made: when it comes from a
shard, with all its rows summed in the job's dtype, and after every addition of two parts.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16, tree
from lockstep_proto.codec import Sums
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.tree import Node

Array = npt.NDArray[Any]
Emit = Callable[[Node, int, Sums, Array], None]  # node, chunk index, sums, values


class Gradient:
    """A flat gradient buffer, with the views of its layers."""

    def __init__(self, layout: Layout) -> None:
        self.flat: Array = np.empty(layout.num_parameters, layout.dtype)
        self.views = layout.views(self.flat)
        self.parts_in_use = 0


class NodeSums:
    """The sums of one step. Buffers are kept for the next. `rounds`: whether values are rounded to bfloat16."""

    def __init__(
        self, layout: Layout, bands: Sequence[slice], chunking: Chunking, num_shards: int, *, rounds: bool = False
    ) -> None:
        self._layout = layout
        self._parts = _parts(bands, chunking)
        self._part_of_band = {part.last_band: i for i, part in enumerate(self._parts)}
        self._chunking = chunking
        self._num_shards = num_shards
        self._rounds = rounds
        self._lock = threading.Lock()
        self._spare: list[Gradient] = []

    def begin(self, tops: Iterable[Node], emit: Emit) -> None:
        """Begin a step on the shards of some top nodes. Threads may call `emit` at the same time."""
        self._emit = emit
        self._tops = {node: _Top() for node in tops}
        self._values: dict[tuple[int, Node], tuple[Gradient, Sums]] = {}

    def buffer(self) -> Gradient:
        """Return a buffer for the value of one node."""
        with self._lock:
            gradient = self._spare.pop() if self._spare else None
        if gradient is None:
            gradient = Gradient(self._layout)
        gradient.parts_in_use = len(self._parts)
        return gradient

    def band_done(self, node: Node, band: int, gradient: Gradient, sums: Sums) -> None:
        """Take in one band of a node's value, after all earlier ones; rounded already unless the node is a leaf."""
        number = self._part_of_band.get(band)
        if number is None:
            return
        part = self._parts[number].flat
        if self._rounds and node[1] - node[0] == 1:
            bfloat16.round_in_place(gradient.flat[part])
        while node not in self._tops:
            parent = tree.parent(node, self._num_shards)
            is_left = node[0] == parent[0]
            sibling = (node[1], parent[1]) if is_left else (parent[0], node[0])
            with self._lock:
                other = self._values.pop((number, sibling), None)
                if other is None:
                    self._values[number, node] = (gradient, sums)
                    return
            (left, left_sums), (right, right_sums) = ((gradient, sums), other) if is_left else (other, (gradient, sums))
            total = left.flat[part]
            np.add(total, right.flat[part], out=total)
            if self._rounds:
                bfloat16.round_in_place(total)
            self._release(right)
            gradient, sums, node = left, left_sums.plus(right_sums), parent
        self._hand_out(node, number, gradient, sums)

    def _hand_out(self, node: Node, number: int, gradient: Gradient, sums: Sums) -> None:
        top, indices = self._tops[node], list[int]()
        with self._lock:
            top.done.add(number)
            while top.num_whole in top.done:
                indices += self._parts[top.num_whole].chunks
                top.num_whole += 1
        for index in indices:
            lo, hi = self._chunking.range(index)
            self._emit(node, index, sums, gradient.flat[lo:hi])
        with self._lock:
            top.handed_out += len(indices)
            if indices and top.handed_out == self._chunking.num_chunks:
                self._spare.append(gradient)

    def _release(self, gradient: Gradient) -> None:
        with self._lock:
            gradient.parts_in_use -= 1
            if gradient.parts_in_use == 0:
                self._spare.append(gradient)


class _Part(NamedTuple):
    """Bands that are summed together, and the chunks that can go out then, if all parts before it have."""

    last_band: int  # to be computed
    flat: slice
    chunks: range


def _parts(bands: Sequence[slice], chunking: Chunking) -> list[_Part]:
    """Return the parts in the order of the vector: so they are computed."""
    parts = []
    start = first = 0
    for number, band in enumerate(bands):
        whole = band.stop == chunking.num_parameters
        end = chunking.num_chunks if whole else band.stop // chunking.chunk_elements
        if end > first:
            parts.append(_Part(number, slice(start, band.stop), range(first, end)))
            start, first = band.stop, end
    return parts


class _Top:
    """How far one top node has come."""

    def __init__(self) -> None:
        self.done: set[int] = set()  # parts
        self.num_whole = 0  # parts that are done and so are all before
        self.handed_out = 0  # chunks
