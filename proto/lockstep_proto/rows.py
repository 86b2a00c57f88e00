"""Which rows belong to which shard, and how many steps an epoch has."""


def shard_range(num_rows: int, num_shards: int, shard: int) -> tuple[int, int]:
    """Return the rows [lo, hi) of one shard.

    Shards are contiguous and their sizes differ by at most one: the first ``num_rows % num_shards`` have one row more.
    """
    size, rest = divmod(num_rows, num_shards)
    lo = shard * size + min(shard, rest)
    return lo, lo + size + (shard < rest)


def steps_per_epoch(num_rows: int, num_shards: int, batch_rows: int | None) -> int:
    """Return the steps it takes until no shard has rows left.

    `batch_rows` are the rows of one step over all shards (a multiple of `num_shards`), None for all rows.
    """
    if batch_rows is None:
        return 1
    largest_shard = -(-num_rows // num_shards)
    return -(-largest_shard // (batch_rows // num_shards))
