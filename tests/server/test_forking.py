"""What a job takes over of the checkpoint it starts from."""

import numpy as np
import pytest

from lockstep_proto.defaults import complete
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import service_pb2
from lockstep_server.checkpoints import Checkpoint, Origin
from lockstep_server.forking import take_over, version_0
from lockstep_server.progress import Progress

SIZE = 3 * 2 + 2


def vector(seed):
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def spec(**changes):
    fields = {
        "network": {"inputs": 3, "layers": [{"units": 2, "activation": "softmax"}]},
        "loss": "cross_entropy",
        "optimizer": {"adam": {"learning_rate": 0.1}},
        "batch_size": 32,
        "epochs": 9,
        "shards": 8,
        "seed": 5,
        "data": {"path": "rows.csv", "target": "y"},
    }
    return complete(read_spec(fields | changes))


PROGRESS = Progress(
    epoch=3,
    step_in_epoch=12,
    elapsed_s=60.0,
    epoch_weight=96.0,
    epoch_loss=7.5,
    validation_loss=0.5,
    best_validation_loss=0.25,
    epochs_without_gain=2,
)
SOURCE = Checkpoint(
    version=400,
    epoch=3,
    step_in_epoch=12,
    parameters=vector(0),
    optimizer_state={"m": vector(1), "s": vector(2)},
    num_updates=500,
    best=vector(3),
    progress=PROGRESS.to_dict(),
)
HERE = {"data_fingerprint": "d" * 32, "validation_fingerprint": "v" * 32}
ORIGIN = Origin(job_id="12ab", spec=spec(), **HERE)


def start(*, source=SOURCE, origin=ORIGIN, told=HERE, **changes):
    return take_over(source, origin, service_pb2.Job(spec=spec(**changes), **told))


def same(a, b):
    assert a.parameters.tobytes() == b.parameters.tobytes()
    assert {name: v.tobytes() for name, v in a.optimizer_state.items()} == {
        name: v.tobytes() for name, v in b.optimizer_state.items()
    }
    assert (a.version, a.epoch, a.step_in_epoch) == (b.version, b.epoch, b.step_in_epoch)
    assert (a.num_updates, a.progress) == (b.num_updates, b.progress)
    assert (a.best is None) == (b.best is None)


def test_an_unchanged_spec_goes_on_bit_for_bit():
    made = start()
    progress = SOURCE.progress | {"elapsed_s": 0.0}  # the wall time is each job's own
    same(made.checkpoint, Checkpoint(**(vars(SOURCE) | {"progress": progress})))
    words = "starts from job 12ab at version 400: parameters, optimizer state, position (epoch 3, step 12)"
    assert made.words == words


def test_hyper_parameters_that_leave_the_steps_as_they_are_keep_the_position():
    changes = {
        "optimizer": {"adam": {"learning_rate": 0.01, "beta1": 0.5}},
        "epochs": 20,
        "clip_norm": 1.0,
        "schedule": {"cosine": {"steps": 900}},
        "penalty": {"l2": 0.1},
        "workers": {"max": 2},
    }
    assert start(**changes).words == start().words
    assert start(**changes).checkpoint.version == 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 6}, "seed 5 there, 6 here"),
        ({"seed": 0}, "seed 5 there, 0 here"),
        ({"shards": 4}, "shards 8 there, 4 here"),
        ({"batch_size": 64}, "batch_size 32 there, 64 here"),
        ({"batch_size": "full"}, "batch_size 32 there, full here"),
        ({"told": HERE | {"data_fingerprint": "e" * 32}}, "data dddddddddddd there, eeeeeeeeeeee here"),
        ({"seed": 6, "shards": 4}, "seed 5 there, 6 here; shards 8 there, 4 here"),
    ],
)
def test_where_the_steps_would_be_others_it_begins_at_version_0_with_the_state(changes, words):
    made = start(**changes)
    expected = version_0(SOURCE.parameters)
    state = {"optimizer_state": SOURCE.optimizer_state, "num_updates": 500}
    same(made.checkpoint, Checkpoint(**(vars(expected) | state)))
    assert made.words == (
        f"starts from job 12ab at version 400: parameters, optimizer state; not the position: {words}"
    )


def test_data_that_are_not_known_are_not_taken_for_equal():
    unknown = {"data_fingerprint": "", "validation_fingerprint": ""}
    made = start(origin=Origin(job_id="12ab", spec=spec(), **unknown), told=unknown)
    assert made.checkpoint.version == 0
    assert made.words.endswith("not the position: the data there are not known")


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"sgd": {"learning_rate": 0.1}}, "adam there, sgd here"),
        ({"adamw": {"learning_rate": 0.1}}, "adam there, adamw here"),
    ],
)
def test_another_optimizer_begins_with_a_state_of_its_own(optimizer, words):
    made = start(optimizer=optimizer)
    assert made.checkpoint.optimizer_state == {}
    assert (made.checkpoint.num_updates, made.checkpoint.version) == (0, 400)
    assert made.words == (
        "starts from job 12ab at version 400: parameters, position (epoch 3, step 12); "
        f"not the optimizer state: {words}"
    )


def test_momentum_that_was_not_there_begins_at_zero():
    source = Checkpoint(**(vars(SOURCE) | {"optimizer_state": {}}))
    origin = Origin(job_id="12ab", spec=spec(optimizer={"sgd": {"learning_rate": 0.1}}), **HERE)
    plain = start(source=source, origin=origin, optimizer={"sgd": {"learning_rate": 0.2}})
    assert plain.words == "starts from job 12ab at version 400: parameters, position (epoch 3, step 12)"
    heavy = start(source=source, origin=origin, optimizer={"sgd": {"learning_rate": 0.2, "momentum": 0.9}})
    assert heavy.checkpoint.optimizer_state == {}
    assert heavy.words.endswith("; not the optimizer state: none there, v here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"told": HERE | {"validation_fingerprint": ""}}, "validation data vvvvvvvvvvvv there, none here"),
        ({"loss": "squared_error"}, "the loss is another"),
        (
            {"network": {"inputs": 3, "layers": [{"units": 2, "activation": "sigmoid"}]}, "loss": "squared_error"},
            "the loss is another; the network is another",
        ),
    ],
)
def test_what_was_best_goes_along_only_where_it_is_measured_alike(changes, words):
    made = start(**changes)
    assert made.checkpoint.version == 400
    assert made.checkpoint.best is None
    progress = Progress.from_dict(made.checkpoint.progress)
    beginning = Progress()
    assert progress.best_validation_loss == progress.validation_loss == beginning.validation_loss
    assert (progress.epochs_without_gain, progress.epoch_loss) == (0, 7.5)
    assert made.words.endswith(f"position (epoch 3, step 12); not the best so far: {words}")
