"""The promise, in one thread: any workers, any CPUs, any order of messages, against a loop that shares only numpy."""

import itertools

import numpy as np
import pytest

from lockstep_proto.layout import Layout, digest
from lockstep_proto.spec import read_spec
from lockstep_worker import stacking
from tests import plain_loop
from tests.one_thread import OneThreadCluster
from tests.plain_loop import Settings

RNG = np.random.default_rng(11)
X = RNG.normal(size=(101, 5)).astype(np.float32)  # ragged for every number of shards and every batch below
LABELS = RNG.integers(0, 3, 101)
VALUES = RNG.normal(size=(101, 3)).astype(np.float32)
WEIGHT = RNG.uniform(0.0, 2.0, 101)
WORKERS = [1, 2, 3, 5, 8]
CPUS = [1, 2]

CASES = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "full batch": {"batch": None},
    "ragged last batch": {"batch": 56},
    "dropout": {"dropout": 0.4},
    "L2": {"l2": 0.01},
    "global-norm clipping": {"clip_norm": 0.2, "momentum": 0.9},
    "bfloat16": {"bfloat16": True, "momentum": 0.9},
    "bfloat16, clipping, L2 and dropout": {"bfloat16": True, "clip_norm": 0.2, "l2": 0.01, "dropout": 0.4},
}


def spec_of(s: Settings):
    last = {"units": s.sizes[-1], "activation": "softmax" if s.loss == "cross_entropy" else "identity"}
    hidden = [{"units": n, "activation": s.hidden, "dropout": s.dropout} for n in s.sizes[1:-1]]
    sgd = {"sgd": {"learning_rate": s.learning_rate, "momentum": s.momentum}}
    fields = {
        "network": {"inputs": s.sizes[0], "layers": [*hidden, last]},
        "loss": s.loss,
        "optimizer": {"adam": {"learning_rate": s.learning_rate}} if s.optimizer == "adam" else sgd,
        "batch_size": "full" if s.batch is None else s.batch,
        "epochs": s.epochs,
        "shards": s.shards,
        "seed": s.seed,
        "dtype": np.dtype(s.dtype).name,
        "wire_dtype": "bfloat16" if s.bfloat16 else None,
        "penalty": {"l2": s.l2},
        "clip_norm": s.clip_norm,
    }
    return read_spec(fields)


def run(s, workers=1, cpus=1, *, y=LABELS, validation=None, weight=None, seed=0, at_step=None):
    x = X.astype(s.dtype)
    y = y if y.ndim == 1 else y.astype(s.dtype)
    if validation is not None:
        validation = (validation[0].astype(s.dtype), validation[1])
    cluster = OneThreadCluster(spec_of(s), x, y, validation=validation, weight=weight, seed=seed, at_step=at_step)
    for i in range(workers):
        cluster.join(f"w{i}", cpus)
    return cluster.run()


def digest_of(s, cluster):
    return digest(Layout.from_spec(spec_of(s)), cluster.parameters)


def with_shards(case, shards):
    changes = dict(CASES[case])
    if shards == 7 and changes.get("batch", 32) is not None:
        changes["batch"] = 35
    return Settings(shards=shards, **changes)


@pytest.mark.parametrize("shards", [1, 7, 8])
@pytest.mark.parametrize("case", CASES)
def test_any_workers_and_cpus_give_the_bits_of_the_plain_loop(case, shards):
    s = with_shards(case, shards)
    expected = plain_loop.train(s, X, LABELS)
    for workers, cpus in itertools.product(WORKERS, CPUS):
        cluster = run(s, workers, cpus, seed=100 * workers + cpus)
        assert digest_of(s, cluster) == expected.digest(s), f"{workers} workers of {cpus} CPUs"
        np.testing.assert_allclose([record.gradient_norm for record in cluster.steps], expected.norms, rtol=1e-12)
        np.testing.assert_allclose([record.loss for record in cluster.steps], expected.losses, rtol=1e-12)


@pytest.mark.parametrize("hidden", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("loss", ["squared_error", "norm", "cross_entropy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_networks_and_types_too(hidden, loss, dtype):
    s = Settings(sizes=(5, 9, 6, 3), hidden=hidden, loss=loss, dtype=dtype, learning_rate=0.05)
    y = LABELS if loss == "cross_entropy" else VALUES
    assert digest_of(s, run(s, 3, y=y)) == plain_loop.train(s, X, y).digest(s)


def test_sample_weights():
    s = Settings(momentum=0.5)
    assert digest_of(s, run(s, 3, 2, weight=WEIGHT)) == plain_loop.train(s, X, LABELS, weight=WEIGHT).digest(s)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_validation_losses_are_those_of_the_plain_loop(bfloat16):
    s = Settings(bfloat16=bfloat16)
    validation = (X[:21], LABELS[:21])
    expected = plain_loop.train(s, X, LABELS, validation=validation)
    for workers in WORKERS:
        cluster = run(s, workers, validation=validation)
        assert [record.validation_loss for record in cluster.epochs] == expected.validation
        assert digest_of(s, cluster) == expected.digest(s)


@pytest.mark.parametrize("changes", [{"clip_norm": 0.5}, {"bfloat16": True}, {"bfloat16": True, "clip_norm": 0.5}])
def test_several_chunks_travel_and_give_the_same_bits(changes):
    s = Settings(sizes=(5, 600, 500, 3), epochs=2, **changes)
    expected = plain_loop.train(s, X, LABELS)
    for workers, cpus in [(1, 1), (2, 1), (1, 2), (3, 2)]:
        cluster = run(s, workers, cpus, seed=workers)
        assert cluster.training.update.chunking.num_chunks > 1
        assert digest_of(s, cluster) == expected.digest(s)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_blocks_of_rows(bfloat16):
    s = Settings(batch=None, epochs=2, shards=2, sizes=(3, 4, 3), bfloat16=bfloat16)
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2 * 8192 + 300, 3)).astype(np.float32), rng.integers(0, 3, 2 * 8192 + 300)
    cluster = OneThreadCluster(spec_of(s), x, y)
    cluster.join("a")
    assert digest_of(s, cluster.run()) == plain_loop.train(s, x, y).digest(s)


@pytest.mark.parametrize("seed", range(25))
def test_comings_and_goings_leave_no_trace(seed):
    random = np.random.default_rng(seed)
    s = Settings(momentum=0.9, epochs=5, bfloat16=seed % 2 == 1)
    names = iter(range(100))

    def change(cluster):
        alive = list(cluster.peers)
        if len(alive) > 1 and random.random() < 0.5:
            (cluster.lose if random.random() < 0.5 else cluster.leave)(alive[random.integers(len(alive))])
        else:
            cluster.join(f"new{next(names)}", int(random.integers(1, 3)))

    at_step = {int(step): change for step in random.integers(0, 15, 6)}
    cluster = OneThreadCluster(spec_of(s), X, LABELS, seed=seed, at_step=at_step)
    for i in range(3):
        cluster.join(f"w{i}")
    for _ in range(int(random.integers(10, 60))):  # and one in the middle of a step
        cluster.turn()
    cluster.lose(next(iter(cluster.peers)))
    if not cluster.peers:
        cluster.join("late")
    while cluster.outcome is None:
        if not cluster.peers:
            cluster.join(f"rescue{next(names)}")
        cluster.turn()
    assert digest_of(s, cluster) == plain_loop.train(s, X, LABELS).digest(s)


@pytest.mark.parametrize(("bfloat16", "element_bytes"), [(False, 4), (True, 2)])
def test_a_step_moves_as_many_bytes_as_the_parameters_have(bfloat16, element_bytes):
    s = Settings(epochs=4, bfloat16=bfloat16)
    spec = spec_of(s)
    workers = 2
    cluster = run(s, workers)
    steps = len(cluster.steps)
    data = Layout.from_spec(spec).num_parameters * element_bytes
    headers_and_work = (48 + 64) * workers * (steps + 1)
    assert workers * steps * data <= cluster.num_bytes_down <= workers * (steps + 1) * data + headers_and_work


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.4}, {"bfloat16": True}, {"dtype": np.float64}])
def test_stacked_shards_give_the_bits_of_the_plain_loop(changes):
    """Two steps of 16 rows a shard, which are stacked, and one of 8."""
    s = Settings(sizes=(64, 128, 10), batch=128, epochs=2, **changes)
    assert stacking.keeps_bits(s.sizes, np.dtype(s.dtype), 4, 16)
    rng = np.random.default_rng(6)
    x, y, weight = rng.normal(size=(320, 64)).astype(s.dtype), rng.integers(0, 10, 320), rng.uniform(0, 2, 320)
    expected = plain_loop.train(s, x, y, weight=weight).digest(s)
    for workers, cpus in [(1, 1), (1, 2), (2, 1), (3, 2)]:
        cluster = OneThreadCluster(spec_of(s), x, y, weight=weight, seed=workers)
        for i in range(workers):
            cluster.join(f"w{i}", cpus)
        assert digest_of(s, cluster.run()) == expected
