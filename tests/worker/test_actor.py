"""The process around workers, called as Ray calls it: in threads of its own, in no order."""

import threading
import weakref

import pytest

from lockstep_worker import actor

MADE = weakref.WeakSet()  # workers that are still in memory


class FakeWorker:
    """Ends at once; `refused` as its id says."""

    def __init__(self, worker_id, job_id, server, *, num_cpus, training, validation, joined):
        self.refused = worker_id == "refused"
        self.told = []
        MADE.add(self)

    def leave(self):
        self.told.append("leave")

    def run(self):
        return " ".join(["over", *self.told])


@pytest.fixture
def process(monkeypatch):
    monkeypatch.setattr(actor, "Worker", FakeWorker)
    return actor.WorkerProcess(1)


def run(process, number, worker_id="w"):
    return process.run(number, worker_id, "job", "server", None)


def test_a_process_is_one_worker_after_another_and_keeps_none_of_them(process):
    assert run(process, 1) == ("over", True)
    assert run(process, 2) == ("over", True)
    assert not MADE


def test_it_is_no_other_worker_after_one_that_was_refused(process):
    assert run(process, 1, "refused") == ("over", False)


def test_a_leave_that_comes_before_its_run_is_heard_and_one_for_the_worker_before_is_not(process):
    process.leave(2)
    process.leave(1)
    assert run(process, 2) == ("over leave", True)
    process.leave(2)
    assert run(process, 3) == ("over", True)


@pytest.mark.parametrize("number", [1, 2])
def test_nobody_waits_for_a_worker_to_join_that_is_over(process, number):
    run(process, 2)
    waiting = threading.Thread(target=process.join, args=[number], daemon=True)
    waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()
