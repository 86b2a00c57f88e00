"""`lockstep demo`: trains a classifier of handwritten digits on a local cluster, and shows what came of it."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import LockstepError
from lockstep.local import LocalCluster

SPEC: dict[str, Any] = {
    "name": "digits",
    "network": {
        "inputs": 64,
        "layers": [{"units": 128, "activation": "relu"}, {"units": 10, "activation": "softmax"}],
    },
    "loss": "cross_entropy",
    "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}},
    "batch_size": 128,
    "epochs": 150,
    "shards": 8,
    "seed": 0,
}
NUM_TEST = 360


def digits() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return (X, y) for training and for testing: 1,797 images of 8 x 8 pixels, 0 to 1, split once and for all."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise LockstepError("the demo needs scikit-learn: pip install 'lockstep-training[sklearn]'") from None
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.data / 16.0).astype(np.float32)[order], data.target[order]
    return (x[NUM_TEST:], y[NUM_TEST:]), (x[:NUM_TEST], y[:NUM_TEST])


def run(workers: int, cpus_per_worker: int, output: Path) -> None:
    """Train, and print accuracy, digest, where the model is, and what to try next."""
    training, test = digits()
    started = time.monotonic()
    print(f"starting a cluster: a server, Ray, {workers} worker{'s' if workers != 1 else ''} of {cpus_per_worker} CPU")
    with LocalCluster(workers, cpus_per_worker=cpus_per_worker) as client:
        job = client.submit(SPEC | {"workers": {"min": workers, "max": workers}}, data=training, validation=test)
        print(f"job {job.id}: 64-128-10 on {len(training[0])} images of handwritten digits")
        job.wait(progress=True, timeout_s=600.0)
        model = job.model()
    model.save(output)
    print(f"\ntest accuracy  {model.score(*test):.4f}   ({len(test[0])} images that it was not trained on)")
    print(f"sha256         {job.digest}")
    print(f"model          {output}")
    print(f"time           {time.monotonic() - started:.1f} s with the start of the cluster")
    print(
        f"\ntry next:\n{_activation()}"
        "  lockstep demo --workers 1                       # the same SHA-256\n"
        "  lockstep demo --workers 1 --cpus-per-worker 2   # the same SHA-256\n"
        "  lockstep up                                     # a cluster in the background\n"
        "  lockstep submit examples/digits.toml --watch"
    )


def _activation() -> str:
    """Return the command that makes `lockstep` known to a shell that has not activated its environment."""
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV"):
        return ""
    command = f". {os.path.relpath(sys.prefix)}/bin/activate"
    return f"  {command:<46}  # so that your shell finds lockstep\n"
