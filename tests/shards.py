"""Shards of arrays, for tests whose data no file has."""

from collections.abc import Callable

from lockstep_proto.rows import shard_range
from lockstep_worker.shard import Shard


def shards_of(num_shards, x, y, weight=None) -> Callable[[int], Shard]:
    def shard(i):
        lo, hi = shard_range(len(x), num_shards, i)
        return Shard(x[lo:hi], y[lo:hi], None if weight is None else weight[lo:hi])

    return shard
