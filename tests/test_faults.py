"""Random faults in one thread: whatever happens to the workers, a job ends with the bits it has without them.

A seed plays the same faults every time.
"""

import itertools
import random

import numpy as np
import pytest

from lockstep_proto import codec
from lockstep_proto.layout import Layout, digest
from lockstep_proto.v1 import service_pb2
from lockstep_server import chunks
from lockstep_worker.following import ProtocolError
from tests import plain_loop
from tests.one_thread import OneThreadCluster
from tests.plain_loop import Settings
from tests.test_same_bits import spec_of

RNG = np.random.default_rng(5)
X = RNG.normal(size=(97, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 97)
VALIDATION = RNG.normal(size=(20, 6)).astype(np.float32), RNG.integers(0, 3, 20)
SHARDS = (1, 3, 7)
MAX_WORKERS = 5
MAX_TURNS = 20_000


def settings(shards, bfloat16):
    return Settings(sizes=(6, 11, 3), batch=21, epochs=4, momentum=0.9, shards=shards, bfloat16=bfloat16)


@pytest.fixture(scope="module")
def expected():
    cases = itertools.product(SHARDS, (False, True))
    return {case: plain_loop.train(settings(*case), X, Y, validation=VALIDATION) for case in cases}


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 256)


class Faults:
    """What may happen to a cluster between two messages. Each returns False where it does not apply."""

    def __init__(self, cluster, seed):
        self.cluster = cluster
        self.random = random.Random(seed)
        self.gone = []  # workers that were given up and do not know it
        self.num_joined = 0
        self.num_faults = 0

    def play(self):
        kinds = [self.join, self.lose, self.leave, self.redial, self.fall_behind, self.late, self.copy]
        weights = [2, 1.5, 1, 1, 2.5, 2, 3]
        for _ in range(MAX_TURNS):
            if self.cluster.outcome is not None:
                return
            if not self.cluster.peers:
                self.join()
            elif self.random.random() < 0.15:
                self.num_faults += self.random.choices(kinds, weights)[0]()
            else:
                self.cluster.turn()  # fails if nothing is under way: then the job would wait for ever
        raise AssertionError(f"the job did not end: {self.cluster.training.phase}")

    def join(self):
        if len(self.cluster.peers) >= MAX_WORKERS:
            return False
        self.num_joined += 1
        self.cluster.join(f"w{self.num_joined}", self.random.choice([1, 2]))
        return True

    def lose(self):
        self.gone.append(self.cluster.peers[name := self._any()])
        self.cluster.lose(name)
        return True

    def leave(self):
        self.cluster.leave(self._any())
        return True

    def redial(self):
        self.gone.append(self.cluster.peers[name := self._any()])
        self.cluster.join(name)
        return True

    def fall_behind(self):
        """Only a worker without shards can: the others wait for it."""
        name = self._any()
        if self.cluster.training.workers[name].ranges:
            return False
        self.cluster.carry(self.cluster.training.worker_behind(name))
        return True

    def late(self):
        """A worker that was given up goes on with what it had been sent, and what it sends still arrives."""
        if not self.gone:
            return False
        peer = self.random.choice(self.gone)
        if peer.to_server:
            chunk = codec.decode_worker_message(peer.to_server.popleft())
            self.cluster.carry(self.cluster.training.chunk_received(peer.worker_id, chunk, self.cluster.now))
        elif peer.to_worker:
            try:
                peer.receive()
            except ProtocolError:  # its stream was cut in the middle of a version
                self.gone.remove(peer)
        return True

    def copy(self):
        """A chunk arrives twice."""
        stream = self.cluster.peers[self._any()].to_server
        if not stream:
            return False
        stream.append(stream[0])
        return True

    def _any(self):
        return self.random.choice(list(self.cluster.peers))


@pytest.mark.parametrize("seed", range(150))
def test_no_fault_of_a_worker_changes_a_bit_or_hangs_the_job(seed, expected):
    case = SHARDS[seed % len(SHARDS)], seed % 2 == 1
    spec = spec_of(settings(*case))
    cluster = OneThreadCluster(spec, X, Y, validation=VALIDATION, seed=seed)
    faults = Faults(cluster, seed)
    faults.play()
    assert cluster.outcome.state == service_pb2.JOB_STATE_SUCCEEDED
    assert digest(Layout.from_spec(spec), cluster.parameters) == expected[case].digest(settings(*case))
    assert [record.validation_loss for record in cluster.epochs] == expected[case].validation
    assert [record.step for record in cluster.steps] == list(range(cluster.training.plan.num_steps))
    assert faults.num_faults >= 3, "or the run shows nothing"
