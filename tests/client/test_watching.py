"""What a watch says of a server that goes away, and of a job that goes back: times and answers are made up."""

from typing import Any

from lockstep.job import Job
from lockstep.watching import Story
from lockstep_proto.v1 import service_pb2

ADDRESS = "127.0.0.1:50051"


def job(step: int, attempt: int = 1, **fields: Any) -> Job:
    return Job(None, service_pb2.Job(step=step, attempt=attempt, **{"num_steps": 900} | fields))  # type: ignore[arg-type]


def test_a_server_that_stays_says_nothing() -> None:
    story = Story(ADDRESS)
    assert [story.seen(job(step), float(step)) for step in range(5)] == [""] * 5


def test_each_way_is_said_once_with_the_time_between() -> None:
    story = Story(ADDRESS, job(10))
    assert story.seen(job(11), 1.0) == ""
    assert story.lost(2.0) == f"the server at {ADDRESS} went away; dialling again"
    assert story.lost(2.5) == story.lost(3.0) == ""
    assert story.seen(job(11), 5.24) == f"the server at {ADDRESS} is back after 3.2 s"
    assert story.seen(job(12), 5.3) == ""
    assert story.lost(7.0) == f"the server at {ADDRESS} went away; dialling again"
    assert story.seen(job(12), 7.5) == f"the server at {ADDRESS} is back after 0.5 s"


def test_a_job_that_was_taken_up_at_an_earlier_step_says_so_once() -> None:
    story = Story(ADDRESS, job(130))
    story.seen(job(131), 0.0)
    story.lost(1.0)
    back = f"the server at {ADDRESS} is back after 3.2 s; the job goes on from step 120 of 900; it had reached 131"
    assert story.seen(job(120, attempt=2), 4.2) == back
    assert [story.seen(job(step, attempt=2), 5.0) for step in (120, 121, 140)] == [""] * 3


def test_it_is_said_when_the_job_is_taken_up_if_that_is_after_the_servers_return() -> None:
    story = Story(ADDRESS, job(131))
    story.lost(1.0)
    assert story.seen(job(117), 2.0) == f"the server at {ADDRESS} is back after 1.0 s"  # as it was last stored
    assert story.seen(job(120, attempt=2), 2.5) == "the job goes on from step 120 of 900; it had reached 131"


def test_a_job_that_goes_back_by_itself_says_so_too() -> None:
    story = Story(ADDRESS, job(131))
    assert story.seen(job(0, attempt=2, num_steps=0), 2.5) == "the job goes on from step 0; it had reached 131"


def test_a_run_that_is_let_go_after_the_next_attempt_has_its_number_tells_nothing_wrong() -> None:
    story = Story(ADDRESS, job(131))
    assert story.seen(job(132, attempt=2), 1.0) == ""
    assert story.seen(job(120, attempt=2), 1.1) == "the job goes on from step 120 of 900; it had reached 132"


def test_a_job_that_goes_on_where_it_was_says_nothing() -> None:
    story = Story(ADDRESS)
    assert story.seen(job(131), 0.0) == ""
    assert story.seen(job(131, attempt=2), 1.0) == ""
    assert story.seen(job(140, attempt=3), 1.0) == ""
