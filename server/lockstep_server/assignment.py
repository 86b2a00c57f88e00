"""Which worker computes which shards: contiguous ranges, balanced by CPUs or speed, cut so that few nodes travel."""

import heapq
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

from lockstep_proto.tree import top_nodes

Range = tuple[int, int]


def assign(num_shards: int, cpus: Sequence[int]) -> list[Range]:
    """Return one range of shards a worker, in the order of `cpus` (the CPUs of each).

    A range has its worker's share of the shards, rounded down or up. Among all such cuts the one with the fewest
    top nodes is taken, the leftmost of several. A worker beyond the number of shards may get an empty range.
    """
    return list(_assign(num_shards, tuple(cpus)))


@lru_cache(maxsize=256)
def _assign(num_shards: int, cpus: tuple[int, ...]) -> tuple[Range, ...]:
    # ends: where the ranges so far may end -> (top nodes so far, the ends of these ranges)
    ends: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    total = sum(cpus)
    seen = 0
    for cpu in cpus:
        seen += cpu
        share = num_shards * cpu / total
        ideal = num_shards * seen / total
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for lo, (nodes, cuts) in ends.items():
            for hi in {lo + math.floor(share), lo + math.ceil(share)}:
                if abs(hi - ideal) < 2 and hi <= num_shards:  # further off than two is never balanced in the end
                    candidate = (nodes + len(top_nodes(lo, hi, num_shards)), (*cuts, hi))
                    following[hi] = min(candidate, following.get(hi, candidate))
        ends = following
    cuts = ends[num_shards][1]
    return tuple(zip((0, *cuts[:-1]), cuts, strict=True))


@lru_cache(maxsize=256)
def count_by_speed(num_shards: int, cpus: tuple[int, ...], slowness: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many shards each worker gets such that the last one is done as early as can be.

    `slowness` has how many times the usual each worker takes for a turn: one shard on each of its CPUs, side by side.
    """
    counts = [0] * len(cpus)
    done = [(times, i) for i, times in enumerate(slowness)]  # when a worker would be done with one turn more
    heapq.heapify(done)
    left = num_shards
    while left:
        at, i = heapq.heappop(done)
        taken = min(cpus[i], left)
        counts[i] += taken
        left -= taken
        heapq.heappush(done, (at + slowness[i], i))
    return tuple(counts)


def ranges_of(counts: Sequence[int]) -> list[Range]:
    """Return contiguous ranges of so many shards each."""
    return list(itertools.pairwise([0, *itertools.accumulate(counts)]))


def deal(shards: Sequence[Range], cpus: Sequence[int]) -> list[list[Range]]:
    """Deal ranges of shards that have lost their worker to others, in proportion to their CPUs."""
    loose = [shard for lo, hi in shards for shard in range(lo, hi)]
    dealt: list[list[Range]] = []
    for lo, hi in assign(len(loose), cpus) if loose else []:
        ranges: list[Range] = []
        for shard in loose[lo:hi]:
            if ranges and ranges[-1][1] == shard:
                ranges[-1] = (ranges[-1][0], shard + 1)
            else:
                ranges.append((shard, shard + 1))
        dealt.append(ranges)
    return dealt
