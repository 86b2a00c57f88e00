"""The arrays one thread computes blocks in: made once, used for every step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_worker.network import Network

Array = npt.NDArray[Any]
Rows = Callable[[str, int], Array]  # name, units -> the array of that name, (N, units)


@dataclass(frozen=True, slots=True)
class InputRows:
    """Room for X and Y of the rows of one shard, and the numbers of these rows from 0."""

    index: Array  # (N,)
    x: Array  # (N, n_1)
    y: Array  # (N, n_L)


class Block:
    """Arrays of a block of N rows; in lists, index 0 is layer 2. Where two may share their place, they are one."""

    def __init__(self, network: Network, fused: bool, num_rows: int, rows: Rows) -> None:
        sizes = network.layout.sizes
        layers = range(len(sizes) - 1)
        units = sizes[1:]
        self._parts: dict[int, list[InputRows]] = {}  # by the number of shards
        self.index = np.arange(num_rows)
        self.x = rows("x", sizes[0])  # (N, n_1)
        self.y = rows("y", sizes[-1])  # (N, n_L)
        self.m = [rows(f"m{i}", units[i]) for i in layers]  # (N, n_l)
        in_place = [network.activations[i].in_place and not (fused and i == layers[-1]) for i in layers]
        self.z = [self.m[i] if in_place[i] else rows(f"z{i}", units[i]) for i in layers]  # before dropout
        self.keep = [rows(f"keep{i}", units[i]) if p else None for i, p in enumerate(network.dropouts)]
        self.dropped = [rows(f"dropped{i}", units[i]) if p else self.z[i] for i, p in enumerate(network.dropouts)]
        self.d = [rows(f"d{i}", units[i]) for i in layers]
        scratch = rows("scratch", max(units)).reshape(-1)
        self.t = [scratch[: num_rows * n].reshape(num_rows, n) for n in units]
        more = [rows("more", max(units)).reshape(-1)] if not all(s.in_place for s in network.activations) else []
        # what σ' takes as z: where that needs no z, scratch, for ΔW^l needs it
        self.s = [
            self.z[i] if network.activations[i].in_place else more[0][: num_rows * n].reshape(num_rows, n)
            for i, n in enumerate(units)
        ]
        # random numbers are float32 whatever the dtype
        self.u = [scratch.view(np.float32)[: num_rows * n].reshape(num_rows, n) for n in units]

    def parts(self, num_shards: int) -> list[InputRows]:
        """Return the room for X and Y of each of some shards of equally many rows."""
        if num_shards not in self._parts:
            rows = len(self.index) // num_shards
            starts = range(0, len(self.index), rows)
            self._parts[num_shards] = [
                InputRows(self.index[:rows], self.x[lo : lo + rows], self.y[lo : lo + rows]) for lo in starts
            ]
        return self._parts[num_shards]


class Workspace:
    """Room for the largest block asked for so far; a block of fewer rows takes the first rows of its arrays."""

    def __init__(self, network: Network, fused: bool) -> None:
        self._network = network
        self._fused = fused
        self._num_rows = 0
        self._arrays: dict[str, Array] = {}
        self._blocks: dict[int, Block] = {}

    def block(self, num_rows: int) -> Block:
        """Return the arrays for a block of so many rows, with what the last block left in them."""
        if num_rows > self._num_rows:
            self._num_rows = num_rows
            self._arrays.clear()
            self._blocks.clear()
        if num_rows not in self._blocks:
            self._blocks[num_rows] = Block(self._network, self._fused, num_rows, lambda *a: self._rows(*a)[:num_rows])
        return self._blocks[num_rows]

    def _rows(self, name: str, units: int) -> Array:
        if name not in self._arrays:
            self._arrays[name] = np.empty((self._num_rows, units), self._network.layout.dtype)
        return self._arrays[name]
