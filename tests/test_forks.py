"""A job that goes on from a checkpoint of another, unchanged, has the bits that the other had."""

import dataclasses

import numpy as np
import pytest

from lockstep_proto.defaults import complete
from lockstep_proto.layout import Layout, digest
from lockstep_proto.spec import read_spec
from lockstep_proto.v1 import service_pb2
from lockstep_server import checkpoints
from lockstep_server.checkpoints import Origin
from lockstep_server.forking import take_over
from tests.one_thread import OneThreadCluster

RNG = np.random.default_rng(4)
X, Y = RNG.normal(size=(100, 5)).astype(np.float32), RNG.integers(0, 3, 100)
VALIDATION = RNG.normal(size=(30, 5)).astype(np.float32), RNG.integers(0, 3, 30)
FINGERPRINTS = {"data_fingerprint": "d", "validation_fingerprint": "v"}


def spec(**changes):
    layers = [{"units": 6, "activation": "tanh", "dropout": 0.2}, {"units": 3, "activation": "softmax"}]
    fields = {
        "network": {"inputs": 5, "layers": layers},
        "loss": "cross_entropy",
        "optimizer": {"adam": {"learning_rate": 0.05}},
        "schedule": {"warmup_steps": 6},
        "batch_size": 32,
        "epochs": 4,
        "shards": 8,
        "data": {"path": "unused.csv", "target": "y"},
    }
    return complete(read_spec(fields | changes))


def cluster(job_spec, **options):
    made = OneThreadCluster(job_spec, X, Y, validation=VALIDATION, **options)
    made.join("w")
    return made


def digest_of(made):
    return digest(Layout.from_spec(made.spec), made.parameters)


def best_of(made):
    return made.training.snapshot().best.tobytes()


@pytest.mark.parametrize("version", [0, 3, 4, 9, 15])
def test_a_fork_with_an_unchanged_spec_reaches_the_same_bits(tmp_path, version):
    taken = []
    whole = cluster(spec(), at_step={version: lambda c: taken.append(c.training.snapshot())}).run()
    origin = Origin(job_id="12ab", spec=spec(), **FINGERPRINTS)
    checkpoints.write(tmp_path / "c.safetensors", origin, taken[0], "")
    start = take_over(
        checkpoints.read(tmp_path / "c.safetensors"), origin, service_pb2.Job(spec=spec(), **FINGERPRINTS)
    ).checkpoint
    fork = cluster(spec(), start=start).run()
    assert fork.steps[0].step == version
    assert digest_of(fork) == digest_of(whole)
    assert best_of(fork) == best_of(whole)
    assert [record.loss for record in fork.steps] == [record.loss for record in whole.steps[version:]]
    ours = [dataclasses.replace(record, duration_s=0) for record in fork.epochs]
    assert ours == [dataclasses.replace(record, duration_s=0) for record in whole.epochs[-len(ours) :]]
