"""Sums the gradients of shards to the top nodes of a worker's ranges, layer by layer, under the backward pass.

Each layer has its own tree: as soon as two siblings have a layer, it is added into the left one's buffer, whichever
thread comes second. What reaches a top node completes chunks of the flat vector from its end to its beginning, and
they are handed out at once.

Where values travel as bfloat16 (lockstep_proto.bfloat16), a layer is rounded whenever it is made: when it comes from a
shard, with all its rows summed in the job's dtype, and after every addition of two layers.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

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
        self.layers = [self.flat[part] for part in layout.layer_slices]
        self.layers_in_use = 0


class NodeSums:
    """The sums of one step. Buffers are kept for the next. `rounds`: whether values are rounded to bfloat16."""

    def __init__(self, layout: Layout, chunking: Chunking, num_shards: int, *, rounds: bool = False) -> None:
        self._layout = layout
        self._chunking = chunking
        self._num_shards = num_shards
        self._rounds = rounds
        self._lock = threading.Lock()
        self._spare: list[Gradient] = []

    def begin(self, ranges: Iterable[tuple[int, int]], emit: Emit) -> None:
        """Begin a step on the shards of `ranges`. Threads may call `emit` at the same time."""
        nodes = [node for lo, hi in ranges for node in tree.top_nodes(lo, hi, self._num_shards)]
        self._emit = emit
        self._tops = {node: _Top(self._layout.num_layers, self._chunking.num_chunks) for node in nodes}
        self._values: list[dict[Node, tuple[Gradient, Sums]]] = [{} for _ in range(self._layout.num_layers)]

    def buffer(self) -> Gradient:
        """Return a buffer for the value of one node."""
        with self._lock:
            gradient = self._spare.pop() if self._spare else None
        if gradient is None:
            gradient = Gradient(self._layout)
        gradient.layers_in_use = self._layout.num_layers
        return gradient

    def layer_done(self, node: Node, layer: int, gradient: Gradient, sums: Sums) -> None:
        """Take in one layer (counted from 0) of a node's value, whole; rounded already unless the node is a leaf."""
        if self._rounds and node[1] - node[0] == 1:
            bfloat16.round_in_place(gradient.layers[layer])
        values = self._values[layer]
        while node not in self._tops:
            parent = tree.parent(node, self._num_shards)
            is_left = node[0] == parent[0]
            sibling = (node[1], parent[1]) if is_left else (parent[0], node[0])
            with self._lock:
                other = values.pop(sibling, None)
                if other is None:
                    values[node] = (gradient, sums)
                    return
            (left, left_sums), (right, right_sums) = ((gradient, sums), other) if is_left else (other, (gradient, sums))
            np.add(left.layers[layer], right.layers[layer], out=left.layers[layer])
            if self._rounds:
                bfloat16.round_in_place(left.layers[layer])
            self._release(right)
            gradient, sums, node = left, left_sums.plus(right_sums), parent
        self._hand_out(node, layer, gradient, sums)

    def _hand_out(self, node: Node, layer: int, gradient: Gradient, sums: Sums) -> None:
        top = self._tops[node]
        with self._lock:
            top.done[layer] = True
            while top.whole_from > 0 and top.done[top.whole_from - 1]:
                top.whole_from -= 1
            whole_from = self._layout.layer_slices[top.whole_from].start if top.whole_from < len(top.done) else None
            indices = []
            while (
                whole_from is not None
                and top.chunks_left
                and self._chunking.range(top.chunks_left - 1)[0] >= whole_from
            ):
                top.chunks_left -= 1
                indices.append(top.chunks_left)
        for index in indices:
            lo, hi = self._chunking.range(index)
            self._emit(node, index, sums, gradient.flat[lo:hi])
        with self._lock:
            top.handed_out += len(indices)
            finished = top.handed_out == self._chunking.num_chunks and not top.finished
            top.finished = top.finished or finished
        if finished:
            for _ in range(gradient.layers_in_use):
                self._release(gradient)

    def _release(self, gradient: Gradient) -> None:
        with self._lock:
            gradient.layers_in_use -= 1
            if gradient.layers_in_use == 0:
                self._spare.append(gradient)


class _Top:
    """How far one top node has come."""

    def __init__(self, num_layers: int, num_chunks: int) -> None:
        self.done = [False] * num_layers
        self.whole_from = num_layers  # layers from here on are whole
        self.chunks_left = num_chunks  # chunks before this one are not handed out yet
        self.handed_out = 0
        self.finished = False
