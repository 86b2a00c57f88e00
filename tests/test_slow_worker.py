"""What a slow worker costs, in virtual time: every shard takes a worker so long, everything else takes nothing."""

import heapq
import itertools

import numpy as np
import pytest

from lockstep_proto import codec
from lockstep_proto.v1 import training_pb2
from tests.messages import read
from tests.one_thread import OneThreadCluster, Peer
from tests.server.test_training import spec

RNG = np.random.default_rng(5)
X = RNG.normal(size=(192, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 192)
FIRST_STEPS = 10  # in which the slow one is found out


class TimedPeer(Peer):
    """Computes one task after the other; each of its shards takes `shard_s`."""

    def __init__(self, cluster, worker_id, num_cpus, shard_s):
        super().__init__(cluster, worker_id, num_cpus)
        self.shard_s = shard_s
        self.busy_until_s = 0.0
        self.newest = -1
        self.order, self.forgot = cluster.order, -1  # numbers of events

    def forget(self):
        super().forget()
        self.forgot = next(self.order)


class TimedCluster(OneThreadCluster):
    """Delivers every message at once and lets computing take its time."""

    def __init__(self, shard_s, **changes):
        super().__init__(spec(workers={"min": len(shard_s)}, **changes), X, Y)
        self.events, self.order = [], itertools.count()
        self.closed_s = []
        for i, seconds in enumerate(shard_s):
            self.peers[f"w{i}"] = TimedPeer(self, f"w{i}", 1, seconds)
        for worker_id in list(self.peers):
            self.carry(self.training.worker_joined(worker_id, 1, 0.0))

    def carry(self, effects):
        before = len(self.steps)
        super().carry(effects)
        self.closed_s += [self.now] * (len(self.steps) - before)
        for peer in self.peers.values():
            self.take(peer)

    def take(self, peer):
        """Have a worker read what has come; work begins when what was before it is done."""
        for _ in range(len(peer.to_worker)):
            message = read(peer.to_worker.popleft())
            if not isinstance(message, training_pb2.ServerMessage):
                peer.following.chunk(message)
                continue
            peer.newest = max(peer.newest, message.work.version)
            num_shards = sum(part.hi - part.lo for part in message.work.ranges)
            begin_s = max(self.now, peer.busy_until_s)
            peer.busy_until_s = begin_s + num_shards * peer.shard_s
            heapq.heappush(self.events, (peer.busy_until_s, next(self.order), peer, message))

    def run(self):
        while self.outcome is None:
            look_s = self.training.handout.look_s
            if look_s < self.events[0][0]:
                self.now = max(look_s, self.now)
                self.carry(self.training.tick(self.now))
                continue
            self.now, number, peer, message = heapq.heappop(self.events)
            if message.work.version < peer.newest or number < peer.forgot:
                peer.busy_until_s = self.now  # between shards a worker sees that it is superseded
                continue
            for worker_id in self.training.workers:
                self.training.workers.heard(worker_id, self.now)
            task = peer.following.work(message.work)
            if task is not None:
                peer.engine.answer(task, peer.following.parameters(task.kind), peer.to_server.append, lambda: False)
            while peer.to_server and self.outcome is None:
                self.hear(peer.worker_id, codec.decode_worker_message(peer.to_server.popleft()))
        return self


def seconds(shard_s, steps, **changes):
    cluster = TimedCluster(shard_s, steps=steps, epochs=1000, **changes).run()
    return cluster, cluster.closed_s[-1] - cluster.closed_s[FIRST_STEPS - 1]


@pytest.mark.parametrize(("shards", "shard_s"), [(8, 0.001), (8, 0.1), (8, 2.0), (16, 0.1)])
def test_one_of_three_workers_slowed_tenfold_costs_at_most_half_of_the_time_again(shards, shard_s):
    steps = 150
    even, even_s = seconds([shard_s] * 3, steps, shards=shards, batch_size=32)
    slow, slow_s = seconds([shard_s, shard_s, 10 * shard_s], steps, shards=shards, batch_size=32)
    assert slow.parameters.tobytes() == even.parameters.tobytes()
    assert slow.training.handout.num_speculative > 0
    assert slow_s <= 1.5 * even_s
    assert even.training.handout.num_speculative == 0
