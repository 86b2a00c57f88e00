"""What a step takes of the shards, and that it is there already when the step comes."""

import numpy as np
import pytest

from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import training_pb2
from lockstep_worker import backprop, batches
from lockstep_worker.batches import Batches
from lockstep_worker.engine import Engine
from lockstep_worker.following import Task
from lockstep_worker.order import shard_order
from lockstep_worker.shard import Shard

STEP, EVALUATE = training_pb2.WORK_KIND_STEP, training_pb2.WORK_KIND_EVALUATE
ROWS = 16  # of a shard in a step
STEPS = 3  # an epoch


def job(shards=4, **fields):
    layers = [{"units": 8, "activation": "relu", "dropout": 0.3}, {"units": 3, "activation": "softmax"}]
    fields = {"network": {"inputs": 5, "layers": layers}, "loss": "cross_entropy", "epochs": 2, "seed": 7} | fields
    return read_spec({"batch_size": ROWS * shards, "shards": shards} | fields)


def shard(index):
    random = np.random.default_rng(index)
    num_rows = ROWS * STEPS
    return Shard(random.normal(size=(num_rows, 5)).astype(np.float32), random.integers(0, 3, num_rows))


def task(version, epoch, step_in_epoch, kind=STEP, ranges=((0, 4),)):
    return Task(1, version, kind, epoch, step_in_epoch, ranges)


def steps():
    return [task(i, *divmod(i, STEPS)) for i in range(2 * STEPS)]


def rows(found):
    return [(batch.shard_index, batch.step, batch.rows.tolist()) for batch in found]


def test_a_step_takes_the_next_rows_of_the_order_of_its_epoch():
    found = Batches(job(), shard).of(task(4, 1, 1), (1, 3))
    orders = [shard_order(7, 1, index, ROWS * STEPS) for index in (1, 2)]
    assert rows(found) == [(i + 1, 4, order[ROWS : 2 * ROWS].tolist()) for i, order in enumerate(orders)]


@pytest.mark.parametrize(("epoch", "step", "next_epoch", "next_step"), [(0, 0, 0, 1), (0, STEPS - 1, 1, 0)])
def test_the_step_ahead_is_the_next_one_of_the_epoch_or_the_first_one_of_the_next(epoch, step, next_epoch, next_step):
    made = Batches(job(), shard)
    (ahead,) = made.ahead(task(2, epoch, step), [(0, 2)])
    following = task(3, next_epoch, next_step)
    assert rows(ahead) == rows(Batches(job(), shard).of(following, (0, 2)))
    assert made.of(following, (0, 2)) is ahead


def test_a_step_that_is_not_the_one_ahead_is_made_anew():
    made = Batches(job(), shard)
    made.ahead(task(2, 0, 0), [(0, 2)])
    assert rows(made.of(task(2, 0, 0), (0, 2))) == rows(Batches(job(), shard).of(task(2, 0, 0), (0, 2)))


class Run:
    """Steps that one engine answers, and how often rows were taken in each."""

    def __init__(self, monkeypatch, num_cpus, spec=None):
        self.num_taken = 0
        take = batches.inputs

        def counted(*arguments):
            self.num_taken += 1
            return take(*arguments)

        monkeypatch.setattr(backprop, "inputs", counted)
        self.spec = spec or job()
        self.engine = Engine(self.spec, 1_000, training=shard, validation=shard, num_cpus=num_cpus)
        random = np.random.default_rng(1)
        self.parameters = random.normal(size=5 * 8 + 8 + 8 * 3 + 3).astype(np.float32)

    def answer(self, what):
        taken, sent = [], []

        def send(message):
            taken.append(self.num_taken)
            sent.append(message[-4 * self.parameters.size :])

        before = self.num_taken
        self.engine.answer(what, self.parameters, send, lambda: False)
        return sent, taken[-1] - before


@pytest.mark.parametrize("num_cpus", [1, 2])
def test_what_a_step_needs_was_taken_in_the_step_before_and_is_the_same(monkeypatch, num_cpus):
    run = Run(monkeypatch, num_cpus)
    answers = [run.answer(what) for what in steps()]
    assert [taken for _, taken in answers] == [num_cpus] + [0] * (2 * STEPS - 1)
    for what, (sent, _) in zip(steps(), answers, strict=True):
        assert Run(monkeypatch, 1).answer(what)[0] == sent


@pytest.mark.parametrize("between", [task(1, 0, 0, EVALUATE), task(1, 0, 1, ranges=((0, 2),)), task(1, 1, 2)])
def test_what_was_taken_ahead_is_not_used_after_other_work(monkeypatch, between):
    run = Run(monkeypatch, 1)
    run.answer(task(0, 0, 0))
    run.answer(between)
    assert run.answer(task(1, 0, 1))[0] == Run(monkeypatch, 1).answer(task(1, 0, 1))[0]


def test_nothing_is_taken_ahead_for_a_step_that_is_superseded(monkeypatch):
    run, looks = Run(monkeypatch, 1), iter([False] * 3)
    run.engine.answer(task(0, 0, 0), run.parameters, lambda _: None, lambda: next(looks, True))
    assert run.num_taken == 1
