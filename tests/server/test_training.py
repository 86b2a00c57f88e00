import math
import weakref

import numpy as np
import pytest

from lockstep_proto.codec import NodeChunk, Sums
from lockstep_proto.defaults import complete
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_server import chunks
from lockstep_server.effects import Dismiss, Ended, Send
from lockstep_server.records import Outcome
from tests.messages import read
from tests.one_thread import OneThreadCluster

RNG = np.random.default_rng(3)
X = RNG.normal(size=(96, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 96)


def spec(**changes):
    fields = {
        "name": "t",
        "network": {"inputs": 5, "layers": [{"units": 6, "activation": "tanh"}, {"units": 3, "activation": "softmax"}]},
        "loss": "cross_entropy",
        "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}},
        "batch_size": 32,
        "epochs": 3,
        "shards": 8,
        "data": {"path": "unused.csv", "target": "y"},
    }
    return complete(read_spec(fields | changes))


def cluster(**options):
    changes = options.pop("changes", {})
    return OneThreadCluster(spec(**changes), X, Y, **options)


def trained(workers=1, **options):
    made = cluster(**options)
    for i in range(workers):
        made.join(f"w{i}")
    return made.run()


def state(outcome):
    return service_pb2.JobState.Name(outcome.state).removeprefix("JOB_STATE_")


def test_a_job_ends_after_its_epochs_and_says_so():
    made = trained()
    assert state(made.outcome) == "SUCCEEDED"
    assert made.outcome.stop_reason == service_pb2.STOP_REASON_EPOCHS
    assert made.outcome.message == "all 3 epochs are done"
    assert [record.step for record in made.steps] == list(range(9))
    assert [record.epoch for record in made.epochs] == [0, 1, 2]
    assert made.epochs[-1].loss < made.epochs[0].loss


def test_steps_end_a_job_in_the_middle_of_an_epoch():
    made = trained(changes={"steps": 4})
    assert made.outcome.stop_reason == service_pb2.STOP_REASON_STEPS
    assert len(made.steps) == 4


def test_the_job_waits_until_its_minimum_of_workers_is_there():
    made = cluster(changes={"workers": {"min": 2}})
    made.join("a")
    assert made.training.phase == "waiting for workers: 1 of 2"
    made.join("b")
    assert made.training.phase == "step 1 of 9"
    assert state(made.run().outcome) == "SUCCEEDED"


def test_a_job_without_workers_fails_at_its_limit_and_says_what_it_waited_for():
    made = cluster(changes={"workers": {"min": 2, "wait_s": 60}})
    made.join("a")
    for now in np.arange(0.5, 60, 0.5):
        made.training.workers.heard("a", now)
        made.carry(made.training.tick(now))
    assert made.outcome is None
    made.training.workers.heard("a", 60.5)
    made.carry(made.training.tick(60.5))
    assert state(made.outcome) == "FAILED"
    assert made.outcome.error_type == service_pb2.ERROR_TYPE_NO_WORKERS
    assert made.outcome.message == "waiting for workers: 1 of 2 for more than 60 s (workers.wait_s)"


def test_a_silent_worker_is_given_up_after_its_lease_and_its_shards_go_to_others():
    made = cluster(changes={"workers": {"min": 2}})
    made.join("a")
    made.join("b")
    made.peers["a"].to_worker.clear()  # hangs: never answers
    del made.peers["a"]
    for now in np.arange(0.5, 3.0, 0.5):
        made.training.workers.heard("b", now)
        made.carry(made.training.tick(now))
    assert list(made.training.workers) == ["b"]
    assert made.training.handout.num_reassigned == 4
    assert made.run().parameters.tobytes() == trained().parameters.tobytes()


def test_time_in_which_the_server_stood_still_does_not_count_against_workers():
    made = cluster()
    made.join("a")
    made.carry(made.training.tick(0.5))
    made.carry(made.training.tick(60.0))
    assert list(made.training.workers) == ["a"]


def test_the_last_worker_goes_and_another_takes_the_step_up():
    made = cluster()
    made.join("a")
    while made.training.version < 2:
        made.turn()
    made.lose("a")
    assert made.training.phase == "waiting for workers: 0 of 1"
    made.join("b")
    assert made.run().parameters.tobytes() == trained().parameters.tobytes()


def test_messages_of_another_attempt_or_step_are_dropped_and_counted():
    made = cluster()
    made.join("a")
    data = np.zeros(made.training.update.chunking.num_parameters, np.float32).data
    for attempt, step in [(0, 0), (2, 0), (1, 1)]:
        chunk = NodeChunk(attempt, step, (0, 8), 0, Sums(1, math.inf, 0), 0.0, data)
        made.carry(made.training.chunk_received("a", chunk, 0.0))
    assert made.training.num_duplicates == 3
    assert made.run().parameters.tobytes() == trained().parameters.tobytes()


@pytest.mark.parametrize(
    ("node", "elements", "index", "reason"),
    [((1, 3), None, 0, "no node of the tree"), ((0, 8), 4, 0, "has 4 elements"), ((0, 8), None, 7, "chunk 7")],
)
def test_a_worker_that_sends_what_cannot_be_is_dismissed(node, elements, index, reason):
    made = cluster()
    made.join("a")
    size = made.training.update.chunking.num_parameters if elements is None else elements
    chunk = NodeChunk(1, 0, node, index, Sums(1, 1, 1), 0.0, np.zeros(size, np.float32).data)
    effects = made.training.chunk_received("a", chunk, 0.0)
    [dismissed] = [effect for effect in effects if isinstance(effect, Dismiss)]
    assert reason in dismissed.reason
    assert dismissed.refused
    assert not made.training.workers


def test_a_message_of_all_shards_is_let_go_when_its_parameters_are_updated(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 16)
    made = cluster()
    made.join("a")
    gradient = np.zeros(made.training.update.chunking.chunk_elements, np.float32)
    message = weakref.ref(gradient)
    made.hear("a", NodeChunk(1, 0, (0, 8), 0, Sums(32, 1, 1), 0.0, gradient.data))
    del gradient
    assert message() is None
    assert made.training.phase == "step 1 of 9"
    assert made.training.num_duplicates == 0


def test_a_newcomer_in_mid_step_gets_the_present_version_whole_and_what_there_is_of_the_next():
    made = cluster()
    made.join("a")
    effects = made.training.worker_joined("b", 1, 0.0)
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    chunk, work = (read(message) for message in messages)
    assert chunk.version == 0
    assert work.work.kind == training_pb2.WORK_KIND_WAIT


def test_a_loss_that_is_not_finite_fails_the_job_and_keeps_the_last_good_version():
    network = {"inputs": 5, "layers": [{"units": 6, "activation": "relu"}, {"units": 3}]}
    changes = {"optimizer": {"sgd": {"learning_rate": 1e30}}, "loss": "squared_error", "network": network}
    made = cluster(changes=changes)
    made.join("a")
    made.run()
    assert state(made.outcome) == "FAILED"
    assert made.outcome.error_type == service_pb2.ERROR_TYPE_NOT_FINITE
    assert "not finite" in made.outcome.message
    assert np.isfinite(made.parameters).all()


def test_stop_acts_between_versions_and_keeps_what_was_learned():
    def stop(made):
        made.carry(made.training.halt(Outcome(service_pb2.JOB_STATE_STOPPED, message="stopped"), made.now))

    made = cluster(at_step={4: stop})
    made.join("a")
    made.run()
    assert state(made.outcome) == "STOPPED"
    assert made.training.version == 5  # the step that was under way is finished first
    assert made.parameters.tobytes() == trained(changes={"steps": 5}).parameters.tobytes()


def test_a_paused_job_goes_on_from_its_checkpoint_with_the_same_bits():
    def pause(made):
        made.carry(made.training.halt(Outcome(service_pb2.JOB_STATE_PAUSED), made.now))

    first = cluster(at_step={4: pause})
    first.join("a")
    checkpoint = first.run().training.snapshot()
    assert checkpoint.version == 5
    second = cluster(start=checkpoint, attempt=2)
    second.join("b")
    assert second.run().parameters.tobytes() == trained().parameters.tobytes()


def test_pause_without_workers_acts_at_once_on_the_last_whole_version():
    made = cluster()
    made.join("a")
    while made.training.version < 2:
        made.turn()
    made.lose("a")
    made.carry(made.training.halt(Outcome(service_pb2.JOB_STATE_PAUSED), made.now))
    assert state(made.outcome) == "PAUSED"
    second = cluster(start=made.training.snapshot(), attempt=2)
    second.join("b")
    assert second.run().parameters.tobytes() == trained().parameters.tobytes()


def test_validation_is_evaluated_after_every_epoch_and_the_best_is_kept():
    made = cluster(validation=(X[:20], Y[:20]))
    made.join("a")
    made.join("b")
    made.run()
    assert len(made.epochs) == 3
    assert all(math.isfinite(record.validation_loss) for record in made.epochs)
    assert 0 <= made.epochs[-1].validation_accuracy <= 1
    assert made.training.snapshot().best is not None


def test_validation_may_have_fewer_rows_than_shards():
    made = cluster(validation=(X[:3], Y[:3]))
    made.join("a")
    assert math.isfinite(made.run().epochs[-1].validation_loss)


def test_patience_ends_a_job_whose_validation_loss_does_not_fall():
    changes = {"stopping": {"patience": 2}, "epochs": 50, "optimizer": {"sgd": {"learning_rate": 1e-30}}}
    made = cluster(changes=changes, validation=(X[:20], Y[:20]))
    made.join("a")
    made.run()
    assert made.outcome.stop_reason == service_pb2.STOP_REASON_PATIENCE
    assert len(made.epochs) == 3  # the first one counts as the best


def test_wall_time_ends_a_job():
    made = trained(changes={"stopping": {"wall_time_s": 0.005}, "epochs": 1000})
    assert made.outcome.stop_reason == service_pb2.STOP_REASON_WALL_TIME
    assert made.outcome.message == "the wall time of 0.005 s is over"


def test_a_full_batch_job_stops_at_its_gradient_norm():
    made = trained(changes={"batch_size": "full", "epochs": 10_000, "stopping": {"gradient_norm": 0.1}})
    assert made.outcome.stop_reason == service_pb2.STOP_REASON_GRADIENT_NORM
    assert made.steps[-1].gradient_norm <= 0.1 < made.steps[-2].gradient_norm
    assert made.training.version == len(made.steps), "the last step is applied"


def test_a_worker_that_lags_forgets_its_work_and_is_sent_the_newest_version_whole():
    made = cluster()
    made.join("a")
    made.join("b")
    made.carry(made.training.worker_behind("b"))
    assert not made.peers["b"].to_worker
    made.lose("a")
    assert made.run().parameters.tobytes() == trained().parameters.tobytes()


def test_more_workers_than_shards_leave_some_without_parameters():
    made = cluster(changes={"shards": 1})
    made.join("a")
    made.join("b")
    down = made.peers["b"].to_worker
    sent = len(down)
    while made.training.version < 4:
        made.turn()
    assert len(down) <= sent
    assert state(made.run().outcome) == "SUCCEEDED"


def test_events_after_the_end_have_no_effect():
    made = trained()
    assert made.training.worker_lost("w0", "late", 99.0) == []
    assert made.training.halt(Outcome(service_pb2.JOB_STATE_STOPPED), 99.0) == []
    assert made.training.abandon(Outcome(service_pb2.JOB_STATE_FAILED)) == []


def test_a_job_can_be_ended_at_once_at_its_present_version():
    made = cluster()
    made.join("a")
    [ended] = made.training.abandon(Outcome(service_pb2.JOB_STATE_FAILED, message="a worker cannot compute"))
    assert isinstance(ended, Ended)
    assert ended.outcome.message == "a worker cannot compute"
    assert made.training.version == 0
