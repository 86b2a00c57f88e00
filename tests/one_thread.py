"""A whole cluster in one thread: the product's state machines, with messages passed by hand in a seeded order.

Streams keep their own order; everything else is shuffled. No gRPC, no Ray, no clock.
"""

import random
from collections import deque

from lockstep_proto import codec
from lockstep_proto.codec import NodeChunk, ParameterChunk
from lockstep_server.effects import Dismiss, Ended, EpochDone, Forget, Listen, Send, StepDone
from lockstep_server.forking import version_0
from lockstep_server.initial import initial_parameters
from lockstep_server.training import Training
from lockstep_worker.engine import Engine
from lockstep_worker.following import Following
from tests.messages import read
from tests.shards import shards_of


class Peer:
    """One worker: its two streams and its computation."""

    def __init__(self, cluster, worker_id, num_cpus):
        self.worker_id = worker_id
        self.to_worker = deque()
        self.to_server = deque()
        chunk_elements = cluster.training.update.chunking.chunk_elements
        self.following = Following(cluster.spec, chunk_elements)
        self.engine = Engine(
            cluster.spec,
            chunk_elements,
            training=cluster.training_shards,
            validation=cluster.validation_shards,
            num_cpus=num_cpus,
        )
        self.superseded_by = -1

    def forget(self):
        self.to_worker.clear()
        self.following.restart()

    def receive(self):
        message = read(self.to_worker.popleft())
        if isinstance(message, ParameterChunk):
            self.following.chunk(message)
            return
        task = self.following.work(message.work)
        if task is not None and task.version >= self.superseded_by:
            parameters = self.following.parameters(task.kind)
            self.engine.answer(task, parameters, self.to_server.append, lambda: False, codec.encode_node_chunk)


class OneThreadCluster:
    """Runs one job to its end. `at_step` maps a version to what is to happen when it is reached."""

    def __init__(
        self,
        spec,
        x,
        y,
        *,
        validation=None,
        weight=None,
        seed=0,
        start=None,
        attempt=1,
        at_step=None,
        max_unsummed_bytes=1 << 30,
    ):
        self.spec = spec
        self.now = 0.0
        self.random = random.Random(seed)
        self.training_shards = shards_of(spec.shards, x, y, weight)
        self.validation_shards = shards_of(spec.shards, *validation) if validation else None
        self.at_step = dict(at_step or {})
        self.peers = {}
        self.held = set()  # workers that are not listened to
        self.steps, self.epochs, self.outcome = [], [], None
        self.num_bytes_down = 0
        self.training = Training(
            spec,
            num_rows=len(x),
            num_validation_rows=len(validation[0]) if validation else 0,
            attempt=attempt,
            start=start or version_0(initial_parameters(spec)),
            lease_s=2.0,
            checkpoint_s=1e9,
            max_unsummed_bytes=max_unsummed_bytes,
            now=self.now,
        )

    def join(self, worker_id, num_cpus=1):
        self.peers[worker_id] = Peer(self, worker_id, num_cpus)
        self.held.discard(worker_id)
        self.carry(self.training.worker_joined(worker_id, num_cpus, self.now))

    def lose(self, worker_id):
        del self.peers[worker_id]
        self.carry(self.training.worker_lost(worker_id, "the test took it", self.now))

    def leave(self, worker_id):
        del self.peers[worker_id]
        self.carry(self.training.worker_leaving(worker_id, self.now))

    def run(self):
        while self.outcome is None:
            self.turn()
        return self

    def turn(self):
        """Deliver one message of one stream, chosen at random."""
        heard = [peer for peer in self.peers.values() if peer.worker_id not in self.held]
        streams = [p.to_worker for p in self.peers.values()] + [p.to_server for p in heard]
        waiting = [stream for stream in streams if stream]
        assert waiting, f"nothing is under way: {self.training.phase}"
        stream = self.random.choice(waiting)
        self.now += 0.001
        for peer in self.peers.values():
            if stream is peer.to_worker:
                peer.receive()
                break
            if stream is peer.to_server:
                self.hear(peer.worker_id, codec.decode_worker_message(stream.popleft()))
                break

    def hear(self, worker_id, message):
        if isinstance(message, NodeChunk):
            self.carry(self.training.chunk_received(worker_id, message, self.now))
        else:
            self.carry(self.training.finding_received(worker_id, message.finding, self.now))

    def carry(self, effects):
        for effect in effects:
            match effect:
                case Send():
                    for worker_id in effect.worker_ids:
                        if worker_id in self.peers:
                            self.peers[worker_id].to_worker.append(effect.message)
                            self.num_bytes_down += effect.num_bytes
                case Forget(worker_id):
                    self.peers[worker_id].forget()
                case Listen(worker_id, listens):
                    (self.held.discard if listens else self.held.add)(worker_id)
                case Dismiss(worker_id):
                    self.peers.pop(worker_id, None)
                case StepDone(record):
                    self.steps.append(record)
                case EpochDone(record):
                    self.epochs.append(record)
                case Ended(outcome):
                    self.outcome = outcome
        while not self.training.ended and self.training.version in self.at_step:
            self.at_step.pop(self.training.version)(self)

    @property
    def parameters(self):
        return self.training.update.parameters
