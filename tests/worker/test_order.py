import numpy as np

from lockstep_worker.order import dropout_stream, shard_order


def test_an_order_is_a_permutation_of_the_rows():
    np.testing.assert_array_equal(np.sort(shard_order(0, 3, 2, 100)), np.arange(100))


def test_orders_differ_by_seed_epoch_and_shard_and_by_nothing_else():
    orders = [tuple(shard_order(*key, 50)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len(set(orders)) == 4
    assert tuple(shard_order(0, 0, 0, 50)) == orders[0]


def test_dropout_has_streams_of_its_own():
    keys = [(0, 0, 0, 2), (1, 0, 0, 2), (0, 1, 0, 2), (0, 0, 1, 2), (0, 0, 0, 3)]
    draws = {tuple(dropout_stream(*key).random(4)) for key in keys}
    assert len(draws) == 5


def test_streams_are_philox_keyed_by_the_use_first():
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence([2, 9, 4, 1]))).permutation(20)
    np.testing.assert_array_equal(shard_order(9, 4, 1, 20), expected)
