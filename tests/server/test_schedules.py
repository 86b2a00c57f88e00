import math

import pytest

from lockstep_proto.spec import read_spec
from lockstep_server.schedules import learning_rates


def rates(schedule, steps):
    spec = read_spec(
        {
            "network": {"inputs": 1, "layers": [{"units": 1}]},
            "loss": "norm",
            "optimizer": {"sgd": {"learning_rate": 0.5}},
            "schedule": schedule,
            "batch_size": 8,
            "epochs": 1,
        }
    )
    rate = learning_rates(spec)
    return [rate(step) for step in steps]


def test_constant():
    assert rates({}, [0, 1, 1000]) == rates("constant", [0, 1, 1000]) == [0.5, 0.5, 0.5]


def test_step():
    assert rates({"step": {"every_steps": 10, "factor": 0.1}}, [0, 9, 10, 25]) == pytest.approx([0.5, 0.5, 0.05, 0.005])


def test_exponential():
    assert rates({"exponential": {"decay": 0.9}}, [0, 1, 7]) == pytest.approx([0.5, 0.45, 0.5 * 0.9**7])


def test_cosine_falls_to_its_end_and_stays_there():
    found = rates({"cosine": {"steps": 100, "final_factor": 0.2}}, [0, 50, 100, 500])
    assert found == pytest.approx([0.5, 0.5 * 0.6, 0.1, 0.1])
    assert rates({"cosine": {"steps": 3}}, [1]) == pytest.approx([0.25 * (1 + math.cos(math.pi / 3))])


def test_warm_up_rises_to_the_rate_and_the_schedule_begins_after_it():
    found = rates({"warmup_steps": 4, "exponential": {"decay": 0.5}}, range(7))
    assert found == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.25, 0.125])
