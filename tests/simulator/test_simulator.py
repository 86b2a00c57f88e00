"""Three hundred seeds, and that the simulator finds what is broken on purpose."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from lockstep_server import checkpoints, supervisor
from lockstep_server.reduction import DuplicateValueError, Reduction
from tests.simulator import jobs
from tests.simulator.run import Report, plan, run
from tests.simulator.shrink import describe, shrink

# A process that dies closes none of its files; here they are closed when the dead are collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def assert_green(report: Report) -> None:
    if report.failed:
        pytest.fail(describe(shrink(report) if report.problems else report), pytrace=False)


@pytest.mark.parametrize("seed", range(300))
def test_no_fault_changes_a_bit_or_hangs_a_job(seed):
    assert_green(run(plan(seed)))


@pytest.mark.parametrize("case", jobs.CASES, ids=lambda case: case.name)
def test_without_faults_a_job_has_the_bits_of_the_plain_loop(case):
    seed = next(seed for seed in range(1000) if plan(seed).case is case)
    report = run(replace(plan(seed), faults=(), fork=False))
    assert not report.problems
    assert report.num_steps == jobs.expected(case).num_steps


def test_a_seed_plays_the_same_run_in_every_process():
    seeds = [1, 2, 3]
    here = [(report.trace, report.story) for report in (run(plan(seed)) for seed in seeds)]
    code = (
        "from tests.simulator.run import plan, run\n"
        f"print([(report.trace, report.story) for report in (run(plan(seed)) for seed in {seeds})])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert there.stdout.decode().strip() == str(here)


def test_a_run_that_shows_nothing_has_failed():
    whole = plan(1)
    report = run(whole.with_faults(whole.faults[:2]))
    assert not report.problems
    assert report.failed
    assert "void" in describe(report)


def first_failure(num_seeds: int) -> Report:
    reports = (run(plan(seed)) for seed in range(num_seeds))
    return next((report for report in reports if report.problems), None) or pytest.fail("nothing was found")


def test_a_duplicate_that_is_added_again_is_found(monkeypatch):
    put = Reduction.put

    def put_again(self, node, chunk_index, sums, gradient):
        try:
            return put(self, node, chunk_index, sums, gradient)
        except DuplicateValueError:
            values = self._chunks[chunk_index]
            if node in values:
                values[node] = self._add(values[node], values[node])
            raise

    monkeypatch.setattr(Reduction, "put", put_again)
    report = shrink(first_failure(100))
    assert len(report.plan.faults) <= 3
    assert "digest" in describe(report)


def test_a_damaged_checkpoint_that_is_used_is_found(monkeypatch):
    monkeypatch.setattr(checkpoints, "_checksum", lambda *_: "always the same")
    first_failure(100)


def test_an_attempt_without_a_number_of_its_own_is_found(monkeypatch):
    take_up = supervisor.next_attempt

    async def same_number(record, *arguments):
        number = max(record.job.attempt, 1)
        start = await take_up(record, *arguments)
        record.job.attempt = number
        return start

    monkeypatch.setattr(supervisor, "next_attempt", same_number)
    assert "of attempt 1 follows" in describe(first_failure(100))
