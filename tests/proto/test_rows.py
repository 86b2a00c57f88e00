from hypothesis import given
from hypothesis import strategies as st

from lockstep_proto import rows


@given(st.integers(0, 500), st.integers(1, 40))
def test_shards_are_contiguous_and_differ_by_at_most_one_row(num_rows, num_shards):
    ranges = [rows.shard_range(num_rows, num_shards, shard) for shard in range(num_shards)]
    assert [row for lo, hi in ranges for row in range(lo, hi)] == list(range(num_rows))
    sizes = [hi - lo for lo, hi in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 30))
def test_an_epoch_ends_when_no_shard_has_rows_left(num_rows, num_shards, rows_of_shard):
    steps = rows.steps_per_epoch(num_rows, num_shards, rows_of_shard * num_shards)
    sizes = [hi - lo for lo, hi in (rows.shard_range(num_rows, num_shards, i) for i in range(num_shards))]
    assert all(size <= steps * rows_of_shard for size in sizes)
    assert any(size > (steps - 1) * rows_of_shard for size in sizes)


def test_a_full_batch_is_one_step():
    assert rows.steps_per_epoch(1000, 8, None) == 1
