"""The parameters at version 0.

W^l is drawn layer by layer from Philox streams keyed by (1, seed, l), in float64, and cast to the job's type; b^l are
zeros. Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010);
He et al., "Delving deep into rectifiers" (2015).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.layout import Layout
from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]
USE = 1  # which use of the seed this is; order and dropout have numbers of their own


def initial_parameters(spec: job_pb2.JobSpec) -> Array:
    """Return the flat vector of version 0 for a spec with an initializer."""
    layout = Layout.from_spec(spec)
    flat = np.zeros(layout.num_parameters, layout.dtype)
    for l, (weights, _) in enumerate(layout.views(flat), start=2):
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([USE, spec.seed, l])))
        weights[...] = _draw(random, spec.initial_parameters.initializer, weights.shape)
    return flat


def _draw(random: np.random.Generator, initializer: job_pb2.Initializer.ValueType, shape: tuple[int, ...]) -> Array:
    """Draw one W^l of shape (n_in, n_out)."""
    n_in, n_out = shape
    match initializer:
        case job_pb2.INITIALIZER_GLOROT_NORMAL:
            return random.normal(0.0, math.sqrt(2.0 / (n_in + n_out)), shape)
        case job_pb2.INITIALIZER_HE_UNIFORM:
            return _uniform(random, math.sqrt(6.0 / n_in), shape)
        case job_pb2.INITIALIZER_HE_NORMAL:
            return random.normal(0.0, math.sqrt(2.0 / n_in), shape)
        case job_pb2.INITIALIZER_ZEROS:
            return np.zeros(shape)
        case _:
            return _uniform(random, math.sqrt(6.0 / (n_in + n_out)), shape)


def _uniform(random: np.random.Generator, a: float, shape: tuple[int, ...]) -> Array:
    return random.uniform(-a, a, shape)
