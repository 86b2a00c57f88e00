"""Which thread computes what."""

import threading

import pytest

from lockstep_worker import shares, stacking
from lockstep_worker.shares import Parts, Supply

SMALL, LARGE = 9_610, 535_818  # parameters


@pytest.fixture(autouse=True)
def as_it_is(monkeypatch, all_threads):
    monkeypatch.setattr(shares, "SMALL_MULTIPLICATIONS", 10_000_000)


def test_a_small_step_is_one_node_of_one_thread():
    assert shares.parts(((0, 2),), 2, 128, SMALL, 2) == Parts(((0, 2),), ((0, 2),), ())


def test_a_large_step_is_a_node_for_each_thread():
    assert shares.parts(((0, 8),), 8, 128, LARGE, 2) == Parts(((0, 8),), ((0, 4), (4, 8)), ())


def test_a_node_has_no_more_rows_than_are_stacked():
    rows = stacking.MOST_ROWS // 2
    assert shares.parts(((0, 4), (4, 7)), 8, rows, LARGE, 1)[1:] == (((0, 2),), ((2, 4), (4, 6), (6, 7)))
    assert shares.parts(((0, 4),), 8, 2 * stacking.MOST_ROWS, LARGE, 3)[1:] == (((0, 1), (1, 2), (2, 3)), ((3, 4),))


def test_shards_of_full_batches_are_computed_one_by_one_by_all_threads():
    assert shares.parts(((0, 2),), 2, None, SMALL, 2) == Parts(((0, 2),), ((0, 1), (1, 2)), ())


def test_uneven_ranges_are_sent_as_their_top_nodes():
    assert shares.parts(((3, 6),), 8, 16, SMALL, 2) == Parts(((3, 4), (4, 6)), ((3, 4),), ((4, 6),))


def test_each_item_is_given_to_one_thread():
    supply, found = Supply(range(2_000), lambda: False), []
    threads = [threading.Thread(target=lambda: found.extend(supply)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(2_000))


def test_nothing_is_given_for_a_task_that_is_superseded():
    looks = iter([False, False, True])
    assert list(Supply(range(9), lambda: next(looks))) == [0, 1]


def test_a_thread_begins_with_its_own_unless_the_task_is_superseded():
    supply = Supply(range(2, 5), lambda: False)
    one, other = supply.after(0), supply.after(1)
    assert [next(other), next(one), next(one), *other, *one] == [1, 0, 2, 3, 4]
    assert list(Supply(range(9), lambda: True).after(0)) == []
