"""The learning rate of a step: η times the factor of the job's schedule. Pure functions in float64."""

import math
from collections.abc import Callable

from lockstep_proto.v1 import job_pb2


def learning_rates(spec: job_pb2.JobSpec) -> Callable[[int], float]:
    """Return the learning rate of each step (counted from 0) of a complete spec."""
    kind, schedule = spec.optimizer.WhichOneof("kind"), spec.schedule
    assert kind is not None
    rate = float(getattr(spec.optimizer, kind).learning_rate)
    if not schedule.warmup_steps and schedule.WhichOneof("kind") in (None, "constant"):
        return lambda step: rate
    return lambda step: rate * factor(schedule, step)


def factor(schedule: job_pb2.Schedule, step: int) -> float:
    """Return the factor on η at `step`: a linear warm-up first, then the schedule, counted from the warm-up's end."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    t = step - schedule.warmup_steps
    match schedule.WhichOneof("kind"):
        case "step":
            return float(schedule.step.factor) ** (t // schedule.step.every_steps)
        case "exponential":
            return float(schedule.exponential.decay) ** t
        case "cosine":
            cosine = schedule.cosine
            done = min(t, cosine.steps) / cosine.steps
            return float(cosine.final_factor) + (1.0 - cosine.final_factor) * (1.0 + math.cos(math.pi * done)) / 2.0
        case _:
            return 1.0
