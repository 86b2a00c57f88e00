"""Shards whose machine is lost: Ray loads them again elsewhere, and a worker that waits for one gets what it was."""

import os

import pytest

from lockstep_worker import actor
from lockstep_worker.errors import WorkerError
from lockstep_worker.fingerprint import fingerprint_shard
from lockstep_worker.loading import JobData
from tests.worker.data_files import job, names_in, table, write_parquet
from tests.worker.test_loading import Loads

NUM_ROWS = 40_000  # a shard of less than 100 KiB is no object of its own: it stays with the fleet


@pytest.fixture
def nodes(monkeypatch):
    """A head and two further nodes of Ray on this machine; the test's process is on the head."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster, others
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_shards_of_a_lost_node_are_loaded_again(nodes, tmp_path):
    import ray
    from ray.experimental import get_object_locations

    cluster, others = nodes
    write_parquet(tmp_path / "data.parquet", table(NUM_ROWS))
    spec = job({"path": "data.parquet"} | names_in(".parquet"), shards=8)
    data = Loads(spec, tmp_path).result()
    assert isinstance(data, JobData), data
    shards = data.training
    locations = [found["node_ids"] for found in get_object_locations(list(shards.references)).values()]
    victim = next(node for node in others if any(node.node_id in where for where in locations))
    num_lost = sum(where == [victim.node_id] for where in locations)
    assert num_lost > 0, "or the test shows nothing"
    cluster.remove_node(victim, allow_graceful=False)

    @ray.remote(num_cpus=1)
    def fetch(shards):
        return os.getpid(), [fingerprint_shard(shards.fetch(index)) for index in range(8)]

    pid, fingerprints = ray.get(fetch.remote(shards), timeout=120)
    assert pid != os.getpid()
    assert fingerprints == list(shards.fingerprints)


class Gone:
    """Shards that cannot be had any more."""

    def fetch(self, shard):
        import ray

        raise ray.exceptions.ObjectLostError("00ff", None, "")


def test_a_shard_that_cannot_be_had_again_fails_the_worker_in_words():
    with pytest.raises(WorkerError, match=r"^shard 3 is lost: ") as caught:
        actor._fetch(Gone(), 3)
    assert "\n" not in str(caught.value)
