import itertools

from hypothesis import given
from hypothesis import strategies as st

from lockstep_proto.tree import top_nodes
from lockstep_server.assignment import assign, deal

CPUS = st.lists(st.integers(1, 4), min_size=1, max_size=12)


@given(st.integers(1, 70), CPUS)
def test_ranges_are_contiguous_and_balanced_by_cpus(num_shards, cpus):
    ranges = assign(num_shards, cpus)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_shards
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    for (lo, hi), cpu in zip(ranges, cpus, strict=True):
        assert abs(hi - lo - num_shards * cpu / sum(cpus)) < 1


def test_cuts_are_made_where_few_nodes_travel():
    assert assign(8, [1, 1]) == [(0, 4), (4, 8)]
    nodes = sum(len(top_nodes(lo, hi, 8)) for lo, hi in assign(8, [1, 1, 1, 1, 1]))
    assert nodes == 5, "one node a worker"
    assert assign(8, [1, 1, 1])[0] == (0, 2)


@given(st.lists(st.integers(0, 30), unique=True, max_size=20).map(sorted), CPUS)
def test_lost_shards_are_dealt_once_each(shards, cpus):
    dealt = deal([(shard, shard + 1) for shard in shards], cpus)
    assert sorted(shard for ranges in dealt for lo, hi in ranges for shard in range(lo, hi)) == shards
