"""How a job must have ended, whatever happened to it."""

from tests.faults import task


def problems(job, **changes):
    """Say what is wrong with a job that must have succeeded as if nothing had happened."""
    digest, losses, validation = task.expected(**changes)
    if job.state != "succeeded" or job.digest != digest:
        yield f"it must succeed with {digest}, but: {job.state} {job.message} {job.digest}"
        return
    history = job.history
    if history.steps["step"] != list(range(len(losses))) or history.steps["loss"] != losses:
        yield f"its history is not that of the plain loop: {history.steps['step']}"
    if history.epochs["validation_loss"] != validation:
        yield f"its validation is not that of the plain loop: {history.epochs['validation_loss']}"
    if job.model().digest != digest:
        yield "its model has another digest"


def told(job):
    """The events of a job as text, for the message of a failed assertion."""
    return "\n".join(f"{event.severity}: {event.message}" for event in job.events)


def assert_undisturbed(job, **changes):
    """Assert that a job has ended as if nothing had happened."""
    wrong = [*problems(job, **changes)]
    assert not wrong, f"{'; '.join(wrong)}\n{told(job)}"
