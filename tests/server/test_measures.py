"""When a run tells its numbers."""

from types import SimpleNamespace

import pytest

from lockstep_server.measures import TELL_S, Measures
from lockstep_server.metrics import Metrics
from tests.server.fakes import step_record
from tests.server.test_metrics import JOB, job_value

TRAINING = SimpleNamespace(
    workers={},
    num_duplicates=0,
    handout=SimpleNamespace(num_reassigned=0, num_speculative=0),
    disputes=SimpleNamespace(num_corrupt=0),
)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def measures(metrics):
    return Measures(JOB, metrics, now=0.0)


def test_steps_that_follow_each_other_fast_are_told_together(metrics, measures):
    measures.num_bytes_in, measures.num_bytes_out = 100, 10
    measures.step_done(step_record(0, num_rows=7), now=0.5 * TELL_S)
    assert job_value(metrics, "updates_total") == 0
    measures.step_done(step_record(1, num_rows=5), now=TELL_S)
    assert job_value(metrics, "updates_total") == 2
    assert job_value(metrics, "rows_total") == 12
    assert job_value(metrics, "exchanged_bytes_total", direction="in") == 100
    assert job_value(metrics, "exchanged_bytes_total", direction="out") == 10
    measures.step_done(step_record(2), now=1.5 * TELL_S)
    assert job_value(metrics, "updates_total") == 2
    measures.step_done(step_record(3), now=2.5 * TELL_S)
    assert job_value(metrics, "updates_total") == 4
    assert job_value(metrics, "exchanged_bytes_total", direction="in") == 100


def test_what_is_left_is_told_with_the_rest(metrics, measures):
    measures.num_bytes_in = 100
    measures.step_done(step_record(0), now=0.0)
    measures.count(TRAINING)
    measures.count(TRAINING)
    assert job_value(metrics, "step") == job_value(metrics, "updates_total") == 1
    assert job_value(metrics, "exchanged_bytes_total", direction="in") == 100


def test_a_status_shows_the_last_loss_at_once(measures):
    measures.step_done(step_record(0, loss=0.25), now=0.0)
    assert measures.latest == {"loss": 0.25}
