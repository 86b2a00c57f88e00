"""Fingerprints of data: equal rows in equally many shards have equal ones, whatever files they came from.

A shard's is the XXH3 of its arrays, fast enough to be taken of every shard that is loaded; a data set's is a SHA-256.
"""

import hashlib
from collections.abc import Iterable

import xxhash

from lockstep_worker.shard import Shard


def fingerprint_shard(shard: Shard) -> str:
    """Return the 128-bit XXH3 of shapes, types and values of x, y and weight, in hexadecimal."""
    hasher = xxhash.xxh3_128()
    for array in (shard.x, shard.y, shard.weight):
        if array is None:
            hasher.update(b"none;")
        else:
            hasher.update(f"{array.dtype.str} {array.shape};".encode())
            hasher.update(array.data)
    return hasher.hexdigest()


def fingerprint_data(shards: Iterable[str]) -> str:
    """Return the SHA-256 over the fingerprints of a data set's shards, in order, in hexadecimal."""
    return hashlib.sha256("\n".join(shards).encode()).hexdigest()
