"""Which computations somebody else reads under."""

import numpy as np
import pytest

from lockstep_proto.v1 import job_pb2, training_pb2
from lockstep_worker import computing
from lockstep_worker.computing import LONG_S, Computing
from lockstep_worker.following import Front, Task
from lockstep_worker.session import Compute, Job, Prepare

JOB = Job(job_pb2.JobSpec(), 4)
PARAMETERS = np.zeros(4, np.float32)


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def monotonic(self):
        return self.now_s


class Engine:
    """Takes as long as it is told."""

    def __init__(self, clock):
        self.clock = clock
        self.lasts_s = 0.0
        self.num_forgotten = 0

    def prepare(self, front):
        self.clock.now_s += self.lasts_s

    def answer(self, *_):
        self.clock.now_s += self.lasts_s

    def forget(self):
        self.num_forgotten += 1


@pytest.fixture
def engine(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(computing, "time", clock)
    return Engine(clock)


def preparation(lo, hi):
    return Prepare(JOB, Front(PARAMETERS, range(lo, hi)))


def computation(kind=training_pb2.WORK_KIND_STEP, *, prepared=True):
    return Compute(JOB, Task(1, 0, kind, 0, 0, ((0, 1),)), PARAMETERS, 0, prepared)


def carry_out(made, what):
    made.carry_out(what, lambda _: b"", lambda _: None, lambda: False)


def test_each_kind_of_work_and_each_part_of_a_network_is_as_long_as_the_last_time(engine):
    made = Computing(lambda _: engine)
    for lasts_s, lo, hi in ((2 * LONG_S, 0, 1), (0.0, 1, 2)):
        assert made.is_long(preparation(lo, hi)), "nobody knows"
        engine.lasts_s = lasts_s
        made.prepare(preparation(lo, hi))
    assert made.is_long(preparation(0, 1))
    assert not made.is_long(preparation(1, 2))
    assert made.is_long(computation())
    carry_out(made, computation())
    assert not made.is_long(computation())
    assert made.is_long(computation(training_pb2.WORK_KIND_EVALUATE))


@pytest.mark.parametrize("prepared", [True, False])
def test_what_was_prepared_of_another_version_is_forgotten(engine, prepared):
    carry_out(Computing(lambda _: engine), computation(prepared=prepared))
    assert engine.num_forgotten == (not prepared)
