"""Workers that are late, stuck, wrong or unable: what the training does about them, moment by moment."""

import numpy as np
import pytest

from lockstep_proto import codec
from lockstep_proto.codec import NodeChunk
from lockstep_proto.v1 import service_pb2
from lockstep_server.course import HALT_S
from lockstep_server.disputes import DECIDE_S
from lockstep_server.effects import Dismiss, Ended, Notice
from lockstep_server.pace import LATE, LATE_STEPS, RETRY_S
from lockstep_server.records import Outcome
from lockstep_server.training import MAX_FAILURES, STUCK_S
from tests.one_thread import OneThreadCluster
from tests.server.test_training import X, Y, spec, state, trained

EXPECTED = trained().parameters.tobytes()


class Cluster(OneThreadCluster):
    """Delivers messages when told to; keeps what people read."""

    def __init__(self, workers=("a", "b", "c"), **changes):
        self.notices, self.dismissed = [], []
        self.corrupt = {}  # worker -> what it does to a chunk it sends
        changes.setdefault("workers", {"min": max(len(workers), 1)})
        super().__init__(spec(**changes), X, Y)
        for name in workers:
            self.join(name)

    def carry(self, effects):
        self.notices += [effect.message for effect in effects if isinstance(effect, Notice)]
        self.dismissed += [effect for effect in effects if isinstance(effect, Dismiss)]
        super().carry(effects)

    def deliver(self, *names):
        """Let these workers get what was sent to them, compute it, and have the answer arrive."""
        for name in names:
            peer = self.peers.get(name)
            for _ in range(len(peer.to_worker) if peer else 0):
                peer.receive()
            while peer and peer.to_server and name in self.peers and self.outcome is None:
                chunk = codec.decode_worker_message(peer.to_server.popleft())
                if isinstance(chunk, NodeChunk):
                    chunk = self.corrupt.get(name, lambda chunk: chunk)(chunk)
                self.hear(name, chunk)

    def step(self, *names, seconds=1.0):
        """One version, in which these workers take so long."""
        version = self.training.version
        for _ in range(10):
            if self.training.version > version or self.outcome is not None:
                return
            self.now += seconds
            for worker_id in self.training.workers:
                self.training.workers.heard(worker_id, self.now)
            self.deliver(*names)
        raise AssertionError(self.training.phase)

    def look(self, seconds):
        self.now += seconds
        for worker_id in self.training.workers:
            self.training.workers.heard(worker_id, self.now)
        self.carry(self.training.tick(self.now))

    def shards(self):
        return {name: sum(hi - lo for lo, hi in view.ranges) for name, view in self.training.workers.items()}

    def said(self, *words):
        return any(all(word in notice for word in words) for notice in self.notices)


def late_c(cluster, steps):
    """Steps in which c is a second later than late, while a and b take one second."""
    for _ in range(steps):
        version = cluster.training.version
        cluster.now += 1.0
        cluster.deliver("a", "b")
        assert cluster.training.version == version
        cluster.look(3 * LATE)
        cluster.deliver("a", "b")
        assert cluster.training.version == version + 1, "the copies of a and b completed it"


def test_shards_that_are_late_are_also_given_to_an_idle_worker_and_the_first_copy_counts():
    cluster = Cluster()
    cluster.step("a", "b", "c")
    due = cluster.training.workers["c"].num_due
    assert due > 0
    late_c(cluster, 1)
    assert cluster.training.handout.num_speculative == 3
    assert cluster.said("worker c is late with step 1", "a and b")
    assert cluster.run().parameters.tobytes() == EXPECTED


def test_the_training_says_when_it_wants_to_look_at_who_is_late():
    cluster = Cluster()
    assert cluster.training.handout.look_s == np.inf, "nothing is usual yet"
    cluster.step("a", "b", "c", seconds=2.0)
    look_s = cluster.training.handout.look_s
    assert cluster.now + LATE * 2.0 / 3 <= look_s <= cluster.now + LATE * 2.0
    cluster.now += 1.0
    cluster.deliver("a", "b")
    cluster.carry(cluster.training.tick(look_s - 0.01))
    assert cluster.training.handout.num_speculative == 0
    cluster.carry(cluster.training.tick(cluster.now + LATE * 2.0))
    assert cluster.training.handout.num_speculative == 3
    assert cluster.training.handout.look_s > cluster.now + LATE * 2.0, "the copies have their time, too"


def test_a_worker_that_becomes_idle_takes_what_is_late_by_then():
    cluster = Cluster()
    cluster.step("a", "b", "c")
    cluster.look(2 * LATE)
    assert cluster.training.handout.num_speculative == 0, "nobody is idle"
    cluster.deliver("a")
    assert cluster.training.handout.num_speculative > 0
    cluster.deliver("a")
    assert cluster.training.version == 2


def test_a_worker_that_is_late_three_steps_running_loses_its_shards_and_is_tried_again_later():
    cluster = Cluster(epochs=300)
    cluster.step("a", "b", "c")
    late_c(cluster, 3)
    assert cluster.said("worker c has been late several steps running")
    assert cluster.shards() == {"a": 4, "b": 4, "c": 0}
    cluster.step("a", "b")
    assert cluster.training.handout.num_speculative == 9, "it holds up nobody any more"
    cluster.now += RETRY_S * max(1.0, cluster.training.workers["c"].pace.turn_s)
    cluster.step("a", "b")
    assert cluster.shards()["c"] == 1, "a trial"
    for _ in range(LATE_STEPS):
        cluster.now += 11.0  # beyond what people have heard of last
        cluster.deliver("c")
        cluster.step("a", "b")
    assert cluster.said("worker c is as fast as usual again")
    assert cluster.shards()["c"] >= 2


def test_a_slow_worker_with_many_shards_gets_as_many_as_its_speed_allows():
    cluster = Cluster(shards=16, batch_size=32, epochs=300)
    cluster.step("a", "b", "c")
    late_c(cluster, 3)
    view = cluster.training.workers["c"]
    turns = {name: cluster.shards()[name] for name in "abc"}
    assert view.pace.turn_s > LATE * 0.2
    assert turns["c"] < min(turns["a"], turns["b"])
    assert sum(turns.values()) == 16


def test_when_everybody_is_late_nobody_is_slow():
    cluster = Cluster(epochs=300)
    for seconds in (1.0, 30.0, 30.0, 30.0, 30.0):
        cluster.step("a", "b", "c", seconds=seconds)
    assert not any(view.pace.slow for view in cluster.training.workers.values())


def test_a_worker_whose_heart_beats_but_that_delivers_nothing_is_given_up():
    cluster = Cluster(workers=("a",))
    for _ in range(int(2 * STUCK_S)):
        assert list(cluster.training.workers) == ["a"]
        cluster.look(0.5)
    cluster.look(0.5)
    assert cluster.dismissed[0].worker_id == "a"
    assert "delivers nothing" in cluster.dismissed[0].reason
    cluster.join("b")
    assert cluster.run().parameters.tobytes() == EXPECTED


def test_a_worker_that_cannot_compute_costs_only_the_worker():
    cluster = Cluster(workers=("a", "b"))
    cluster.carry(cluster.training.worker_failed("a", service_pb2.ERROR_TYPE_INTERNAL, "a lost object", cluster.now))
    assert [effect.worker_id for effect in cluster.dismissed] == ["a"]
    assert cluster.run().parameters.tobytes() == EXPECTED


def test_a_step_that_several_workers_cannot_compute_fails_the_job():
    cluster = Cluster(workers=())
    for i in range(MAX_FAILURES):
        cluster.join(f"w{i}")
        assert cluster.outcome is None
        failed = cluster.training.worker_failed(f"w{i}", service_pb2.ERROR_TYPE_INTERNAL, "no memory", cluster.now)
        cluster.carry(failed)
    assert state(cluster.outcome) == "FAILED"
    assert cluster.outcome.message == "no memory"


def test_data_that_a_worker_cannot_use_fail_the_job_at_once():
    cluster = Cluster(workers=("a", "b"))
    failed = cluster.training.worker_failed("a", service_pb2.ERROR_TYPE_DATA_UNAVAILABLE, "x.csv is gone", cluster.now)
    cluster.carry(failed)
    assert cluster.outcome.error_type == service_pb2.ERROR_TYPE_DATA_UNAVAILABLE


def test_a_stop_waits_for_the_step_under_way_but_not_for_ever():
    cluster = Cluster(workers=("a",))
    cluster.step("a")
    cluster.carry(cluster.training.halt(Outcome(service_pb2.JOB_STATE_STOPPED), cluster.now))
    cluster.look(HALT_S - 0.1)
    assert cluster.outcome is None
    cluster.look(0.2)
    assert state(cluster.outcome) == "STOPPED"
    assert cluster.training.version == 1


def test_workers_that_come_and_go_do_not_put_off_the_end_of_the_wait():
    cluster = Cluster(workers=())
    cluster.training.spec.workers.wait_s = 10.0
    for i in range(4):
        cluster.look(3.0)
        if cluster.outcome is not None:
            break
        cluster.join(f"w{i}")
        cluster.lose(f"w{i}")
    assert state(cluster.outcome) == "FAILED"
    assert cluster.outcome.error_type == service_pb2.ERROR_TYPE_NO_WORKERS


def flip(chunk):
    """A bit of the values is not what it was."""
    data = bytearray(chunk.data)
    data[-2] ^= 1
    return chunk._replace(data=bytes(data))


@pytest.mark.parametrize("workers", [("a",), ("a", "b"), ("a", "b", "c")])
def test_nodes_that_are_computed_twice_on_purpose_change_nothing(workers):
    cluster = Cluster(workers, audit=1.0)
    assert cluster.run().parameters.tobytes() == EXPECTED
    assert cluster.training.disputes.num_corrupt == 0
    assert cluster.training.num_duplicates >= 9


def first_copies_of(cluster, name):
    """Let a worker compute what it was given first, and not the second copies."""
    peer = cluster.peers[name]
    while not peer.to_server:
        peer.receive()
    while peer.to_server:
        chunk = codec.decode_worker_message(peer.to_server.popleft())
        cluster.hear(name, cluster.corrupt.get(name, lambda chunk: chunk)(chunk))


def test_a_version_waits_for_its_second_copies_though_nobody_is_left_to_compute_them():
    cluster = Cluster(("a",), audit=1.0)
    cluster.corrupt["a"] = flip
    first_copies_of(cluster, "a")
    cluster.lose("a")
    assert (cluster.training.version, cluster.outcome) == (0, None)
    assert cluster.training.phase == "waiting for workers: 0 of 1"
    cluster.join("b")
    cluster.join("c")
    while cluster.outcome is None:
        cluster.deliver("b", "c")
    assert cluster.outcome.state == service_pb2.JOB_STATE_RUNNING, "a rewind"
    assert cluster.steps == [], "no wrong version was closed"


def test_without_workers_nobody_can_be_late():
    cluster = Cluster(("a",), audit=1.0)
    cluster.step("a")
    version, copies = cluster.training.version, []

    def second_copy_is_wrong(chunk):
        copies.append(chunk)
        return flip(chunk) if len(copies) == 2 else chunk

    cluster.corrupt["a"] = second_copy_is_wrong
    while not cluster.dismissed:  # by the word of its own third copy
        cluster.now += 1.0
        cluster.deliver("a")
    assert cluster.training.version == version + 1
    assert cluster.training.phase == "waiting for workers: 0 of 1"
    assert cluster.training.look_s == np.inf, "else the server would look again and again, without a pause"


def test_what_takes_the_place_of_a_lost_workers_shards_is_audited_too():
    cluster = Cluster(("a", "b", "c"), audit=1.0)
    cluster.lose("a")
    cluster.corrupt["b"] = lambda chunk: cluster.corrupt.pop("b") and flip(chunk)
    while cluster.outcome is None and not cluster.dismissed:
        cluster.deliver("b", "c")
    assert [effect.worker_id for effect in cluster.dismissed] == ["b"]


def test_the_wrong_one_of_three_whose_copy_was_applied_is_named_and_the_job_rewinds():
    cluster = Cluster(("a", "b", "c"), audit=1.0)
    cluster.corrupt["a"] = lambda chunk: flip(chunk) if chunk.node == (0, 2) else chunk
    while cluster.outcome is None:
        cluster.deliver("a", "b", "c")
    assert cluster.said("node [0, 2) of step 0", "the copies of a and", "differ")
    assert [effect.worker_id for effect in cluster.dismissed] == ["a"]
    assert cluster.said("worker a", "it computed node [0, 2) of step 0 (layer 2) wrongly", "expelled")
    assert cluster.outcome.state == service_pb2.JOB_STATE_RUNNING, "a rewind"
    assert "rewinds to its last checkpoint" in cluster.outcome.message


def test_a_wrong_copy_that_was_not_applied_costs_its_worker_and_nothing_else():
    cluster = Cluster(("a", "b", "c"), audit=1.0)
    cluster.deliver("a", "c")
    cluster.corrupt["b"] = lambda chunk: flip(chunk) if chunk.node == (0, 2) else chunk
    while not cluster.dismissed:
        cluster.deliver("a", "b", "c")
    assert [effect.worker_id for effect in cluster.dismissed] == ["b"]
    assert cluster.run().parameters.tobytes() == EXPECTED


def test_of_two_workers_a_passing_error_is_found_by_asking_again():
    cluster = Cluster(("a", "b"), audit=1.0)
    cluster.corrupt["b"] = lambda chunk: cluster.corrupt.pop("b") and flip(chunk)
    while not cluster.dismissed:
        cluster.deliver("a", "b")
    assert [effect.worker_id for effect in cluster.dismissed] == ["b"]


def test_two_workers_that_contradict_each_other_for_good_fail_the_job():
    cluster = Cluster(("a", "b"), audit=1.0)
    cluster.corrupt["b"] = flip
    for _ in range(20):
        cluster.deliver("a", "b")
    assert cluster.said("a and b differ, and nobody can tell which is right; waiting for another worker")
    assert cluster.training.phase == "waiting for a worker to tell which of two copies is right, at step 1"
    cluster.look(DECIDE_S)
    assert cluster.outcome is None
    cluster.look(0.1)
    assert state(cluster.outcome) == "FAILED"
    assert cluster.outcome.error_type == service_pb2.ERROR_TYPE_CORRUPTION
    assert "a and b differ, and nobody can tell which is right" in cluster.outcome.message


def test_who_comes_later_tells_which_of_two_workers_is_right():
    cluster = Cluster(("a", "b"), audit=1.0)
    cluster.corrupt["a"] = lambda chunk: cluster.corrupt.pop("a") and flip(chunk)
    while not cluster.training.disputes.num_corrupt:
        cluster.deliver("a", "b")
    cluster.lose("a")
    for _ in range(5):
        cluster.deliver("b")
    assert cluster.said("nobody can tell which is right; waiting for another worker")
    cluster.look(DECIDE_S / 2)
    cluster.join("c")
    while cluster.outcome is None:
        cluster.deliver("b", "c")
    assert cluster.outcome.state == service_pb2.JOB_STATE_RUNNING, "a rewind: the copy of a was applied"


def test_where_one_of_two_that_differ_is_gone_and_nobody_comes_the_job_rewinds():
    cluster = Cluster(("a", "b"), audit=1.0)
    cluster.corrupt["a"] = lambda chunk: cluster.corrupt.pop("a") and flip(chunk)
    while not cluster.training.disputes.num_corrupt:
        cluster.deliver("a", "b")
    cluster.lose("a")
    for _ in range(5):
        cluster.deliver("b")
    version = cluster.training.version
    cluster.look(DECIDE_S)
    assert cluster.outcome is None
    cluster.look(0.1)
    assert cluster.outcome.state == service_pb2.JOB_STATE_RUNNING, "a rewind"
    assert cluster.training.version == version, "nothing in doubt was closed"
    assert not cluster.dismissed, "nobody was found guilty"


def test_a_dispute_whose_witness_is_lost_asks_another():
    cluster = Cluster(("a", "b", "c", "d"), audit=1.0)
    cluster.corrupt["a"] = flip
    cluster.deliver("a", "b")
    disputes = cluster.training._round.witnesses.disputes
    while not disputes:
        cluster.deliver("b", "c", "d")
    dispute = next(iter(disputes.values()))
    first = dispute.asked
    cluster.lose(first)
    assert dispute.asked not in (None, first)
    while cluster.outcome is None and not cluster.dismissed:
        cluster.deliver("b", "c", "d")
    assert [effect.worker_id for effect in cluster.dismissed] == ["a"]


def test_what_is_not_finite_is_traced_to_its_shard_and_layer_and_never_reaches_the_parameters():
    x = X.copy()
    x[70] = np.nan  # a row of shard 5
    cluster = OneThreadCluster(spec(batch_size="full", epochs=9), x, Y)
    before = cluster.parameters
    cluster.join("a")
    cluster.join("b")
    cluster.run()
    assert state(cluster.outcome) == "FAILED"
    assert cluster.outcome.error_type == service_pb2.ERROR_TYPE_NOT_FINITE
    assert cluster.outcome.message.startswith("step 0: the ")
    assert "shard 5 (rows 60 to 71 of the training data)" in cluster.outcome.message
    assert cluster.parameters.tobytes() == before.tobytes()


def test_an_examination_goes_on_when_a_worker_is_lost_in_it():
    x = X.copy()
    x[70] = np.nan
    cluster = OneThreadCluster(spec(batch_size="full", epochs=9, workers={"min": 2}), x, Y)
    cluster.join("a")
    cluster.join("b")
    while not cluster.training.phase.startswith("examining"):
        cluster.turn()
    cluster.lose("b")
    assert "shard 5" in cluster.run().outcome.message


def poison(chunk):
    """A value is no number, though it was computed right."""
    data = np.frombuffer(chunk.data, np.float32).copy()
    data[0] = np.inf
    return chunk._replace(data=data.tobytes())


def test_a_value_that_became_infinite_on_its_way_is_computed_again():
    cluster = Cluster(("a", "b"))
    cluster.corrupt["b"] = lambda chunk: cluster.corrupt.pop("b") and poison(chunk)
    while cluster.outcome is None:
        cluster.deliver("a", "b")
    assert cluster.said("step 0: the gradient of layer 2 is not finite, but that of each shard is")
    assert cluster.parameters.tobytes() == EXPECTED


def test_a_sum_that_leaves_the_range_though_no_shard_does_fails_the_job():
    cluster = Cluster(("a",))
    cluster.corrupt["a"] = lambda chunk: poison(chunk) if len(chunk.data) else chunk
    for _ in range(9):
        cluster.deliver("a")
    assert state(cluster.outcome) == "FAILED"
    assert "their sum leaves the range of numbers" in cluster.outcome.message


def test_parameters_that_would_leave_the_range_fail_the_job_even_at_the_last_step():
    cluster = Cluster(("a",), optimizer={"sgd": {"learning_rate": 1e39}}, steps=1)
    cluster.deliver("a")
    assert state(cluster.outcome) == "FAILED"
    assert "the update of layer" in cluster.outcome.message
    assert np.isfinite(cluster.parameters).all()


def test_an_end_says_nothing_more():
    cluster = Cluster(("a",))
    cluster.carry(cluster.training.abandon(Outcome(service_pb2.JOB_STATE_STOPPED)))
    assert cluster.training.worker_failed("a", service_pb2.ERROR_TYPE_INTERNAL, "late", cluster.now) == []
    assert not any(isinstance(effect, Ended) for effect in cluster.training.tick(cluster.now + 1000.0))
