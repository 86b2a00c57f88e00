import dataclasses

import pytest

from tests.deploy.faults import KINDS, schedule
from tests.deploy.recovery import Progress, Recovery, Row, Window, as_table, percentile, rows


def seen(*steps: tuple[float, int, int], job_id: str = "a", progress: Progress | None = None) -> Progress:
    """The progress of a job of which was seen (time, attempt, step)."""
    progress = progress or Progress()
    for time_s, attempt, step in steps:
        progress.look(job_id, attempt, step, time_s, ended=False)
    return progress


def waits(progress: Progress, fault: Window) -> list[float]:
    return [recovery.step_s for recovery in progress.recoveries(fault)]


def window(service: str, began_s: float, lifted_s: float, whole_s: float) -> Window:
    return Window(service, "pause", began_s, lifted_s, whole_s)


def test_a_recovery_is_the_longest_wait_from_the_fault_on() -> None:
    progress = seen((1.0, 1, 5), (2.0, 1, 6), (2.5, 1, 7), (7.0, 1, 8), (8.0, 1, 9))
    assert waits(progress, window("ray-worker", 2.2, 2.2, 7.5)) == [4.5]  # the step of 2.5 s was under way


def test_a_wait_that_began_before_the_fault_counts_from_it() -> None:
    progress = seen((1.0, 1, 5), (2.0, 1, 6), (7.0, 1, 8))
    assert waits(progress, window("ray-worker", 4.0, 4.0, 7.5)) == [3.0]


def test_a_step_that_is_done_again_by_a_new_attempt_is_a_completed_step() -> None:
    progress = seen((1.0, 1, 88), (2.0, 1, 90), (5.0, 2, 50), (6.0, 2, 51))
    assert waits(progress, window("server", 2.0, 2.0, 6.5)) == [4.0]  # that of 5.0 s was not done, only taken up


def test_what_holds_the_whole_cluster_counts_from_when_it_is_lifted() -> None:
    progress = seen((1.0, 1, 5), (2.0, 1, 6), (14.0, 1, 7), (14.5, 1, 8))
    assert waits(progress, window("server", 3.0, 13.0, 14.2)) == [1.0]
    assert waits(progress, window("ray-worker", 3.0, 13.0, 14.2)) == [11.0]


def test_the_end_of_a_job_is_progress_and_a_job_that_came_later_was_not_met() -> None:
    progress = seen((1.0, 1, 5), (2.0, 1, 6))
    progress.look("a", 1, 6, 4.0, ended=True)
    seen((3.0, 1, 0), (9.0, 1, 1), job_id="later", progress=progress)
    assert waits(progress, window("server", 2.5, 2.5, 10.0)) == [1.5]


@pytest.mark.parametrize(("share", "value"), [(0.5, 3.0), (0.95, 5.0), (0.0001, 1.0), (1.0, 5.0)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], share) == value


def test_rows_tell_services_and_actions_apart() -> None:
    found = [Recovery("ray-worker", "kill", 0.5, 6.0), Recovery("ray-worker", "pause", 2.25, 0.1)]
    found.append(Recovery("server", "kill", 2.004, 3.0))
    assert rows(found) == [
        Row("ray-worker", "all", 2, 0.5, 2.25, 0.1, 6.0),
        Row("ray-worker", "kill", 1, 0.5, 0.5, 6.0, 6.0),
        Row("ray-worker", "pause", 1, 2.25, 2.25, 0.1, 0.1),
        Row("server", "all", 1, 2.0, 2.0, 3.0, 3.0),
        Row("server", "kill", 1, 2.0, 2.0, 3.0, 3.0),
    ]
    assert as_table(rows(found)).splitlines()[2] == "| ray-worker | all | 2 | 0.5 | 2.25 | 0.1 | 6.0 |"


def test_a_job_that_lost_its_only_worker_is_counted_apart() -> None:
    progress = seen((1.0, 1, 5), (2.0, 1, 6), (4.0, 1, 7))
    fault = dataclasses.replace(window("ray-worker", 2.5, 2.5, 4.5), bereft=frozenset({"a"}))
    assert progress.recoveries(fault) == [Recovery("ray-worker, a job's only one", "pause", 1.5, 2.0)]


def test_a_seed_draws_the_same_faults_again_and_every_kind_once_a_round() -> None:
    drawn = list(schedule(7, rounds=2))
    assert drawn == list(schedule(7, rounds=2)) != list(schedule(8, rounds=2))
    for first in (0, len(KINDS)):
        assert {(fault.service, fault.action) for fault in drawn[first : first + len(KINDS)]} == set(KINDS)
