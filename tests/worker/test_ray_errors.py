import pytest
import ray

from lockstep_worker.errors import WorkerError
from lockstep_worker.ray_errors import DIED, in_words

DEAD = """The actor died unexpectedly before finishing this task.
\tclass_name: WorkerProcess
\tactor_id: 4b2f914c872d70adc04ddea501000000
\tpid: 17572
The actor is dead because """


def died(message):
    return ray.exceptions.RayActorError("4b2f914c", message)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ray.exceptions.RayTaskError("f", "Traceback (most recent call last): ...", ValueError("one\ntwo")),
            "ValueError: one",
        ),
        (
            died(DEAD + "its worker process has died. Worker exit type: SYSTEM_ERROR ..."),
            DIED,
        ),
        (died(DEAD + "it was killed by `ray.kill`."), "it was killed by `ray.kill`"),
        (died("The actor died because of a new reason\nand more"), "The actor died because"),
        (ray.exceptions.WorkerCrashedError(), DIED),
        (ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory"), "its machine ran"),
        (ray.exceptions.RayTaskError("f", "Traceback ...", WorkerError("no room")), "no room"),
        (ray.exceptions.ObjectLostError("00ff", None, ""), "its machine is gone, and it cannot be loaded again"),
        (ray.exceptions.OwnerDiedError("00ff" * 14, None, ""), "the fleet that had it loaded is gone"),
        (ray.exceptions.TaskCancelledError(), "TaskCancelledError"),
    ],
)
def test_an_error_becomes_one_line_of_words(error, words):
    found = in_words(error)
    assert found.startswith(words)
    assert "\n" not in found
    assert "class_name" not in found


def test_the_reason_of_a_death_ends_with_its_sentence():
    assert in_words(died(DEAD + "its node has died. There is more")) == "its node has died"
