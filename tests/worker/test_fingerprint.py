import hashlib

import numpy as np
import pytest
import xxhash

from lockstep_worker.fingerprint import fingerprint_data, fingerprint_shard
from lockstep_worker.shard import Shard

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 2, 1])
WEIGHT = np.array([1.0, 2.0, 1.0, 0.5])


def changed(array, at, value):
    copy = array.copy()
    copy[at] = value
    return copy


OTHERS = {
    "a feature": Shard(changed(X, (3, 2), 11.000001), Y, WEIGHT),
    "a label": Shard(X, changed(Y, 0, 1), WEIGHT),
    "a weight": Shard(X, Y, changed(WEIGHT, 3, 0.25)),
    "no weights": Shard(X, Y),
    "weights of 1": Shard(X, Y, np.ones(4)),
    "the order of rows": Shard(X[::-1].copy(), Y, WEIGHT),
    "the type": Shard(X.astype(np.float64), Y, WEIGHT),
    "the shape": Shard(X.reshape(3, 4), Y, WEIGHT),
    "where x ends": Shard(X[:3], Y, WEIGHT),
    "a sign of zero": Shard(changed(X, (0, 0), -0.0), Y, WEIGHT),
    "no rows": Shard(X[:0], Y[:0], WEIGHT[:0]),
}


def test_equal_shards_have_equal_fingerprints():
    assert fingerprint_shard(Shard(X, Y, WEIGHT)) == fingerprint_shard(Shard(X.copy(), Y.copy(), WEIGHT.copy()))


@pytest.mark.parametrize("what", OTHERS)
def test_any_difference_of_a_shard_is_one_of_its_fingerprint(what):
    others = [fingerprint_shard(shard) for name, shard in OTHERS.items() if name != what]
    assert fingerprint_shard(OTHERS[what]) not in [fingerprint_shard(Shard(X, Y, WEIGHT)), *others]


def test_the_fingerprint_of_data_is_that_of_their_shards_in_order():
    assert fingerprint_data(iter(["a", "b"])) == fingerprint_data(["a", "b"])
    given = [["a", "b"], ["b", "a"], ["a"], ["ab"], []]
    assert len({fingerprint_data(shards) for shards in given}) == len(given)


def test_fingerprints_are_stored_and_so_stay_what_they_are():
    content = b"<f4 (4, 3);" + X.tobytes() + b"<i8 (4,);" + Y.tobytes() + b"none;"
    assert fingerprint_shard(Shard(X, Y)) == xxhash.xxh3_128_hexdigest(content)
    assert fingerprint_data(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()
