"""The numerics fingerprint of a process: what decides the bits of its floating-point results."""

import hashlib
import importlib
import platform
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import numerics_pb2

Array = npt.NDArray[Any]
NUMERICS_REVISION = 1  # raised whenever the computation itself changes


@lru_cache(maxsize=1)
def fingerprint() -> numerics_pb2.NumericsFingerprint:
    """Return this process's fingerprint. BLAS must have the threads it is to keep: call it after they are set."""
    blas = _blas()
    return numerics_pb2.NumericsFingerprint(
        numerics_revision=NUMERICS_REVISION,
        numpy_version=np.__version__,
        blas=f"{blas.get('internal_api', 'unknown')} {blas.get('version', 'unknown')}",
        blas_core=str(blas.get("architecture", "unknown")),
        blas_threads=int(blas.get("num_threads", 0)),
        libc=" ".join(platform.libc_ver()),
        cpu_features=_cpu_features(),
        probe=_probe(),
    )


def difference(a: numerics_pb2.NumericsFingerprint, b: numerics_pb2.NumericsFingerprint) -> str | None:
    """Name the first field in which two fingerprints differ, with both values; None if they are equal."""
    for field in a.DESCRIPTOR.fields:
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if mine != other:
            return f"{field.name}: {mine} against {other}"
    return None


def _blas() -> dict[str, Any]:
    """Return what is known of the BLAS that numpy uses."""
    import threadpoolctl

    found: list[dict[str, Any]] = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    of_numpy = [info for info in found if "numpy" in info["filepath"]]
    return (of_numpy or found or [{}])[0]


def _cpu_features() -> str:
    """Name the features that numpy was built to use and finds here; what else the CPU can do changes nothing."""
    # numpy has no public way to ask
    umath = importlib.import_module("numpy._core._multiarray_umath")
    found: dict[str, bool] = umath.__cpu_features__
    return " ".join(name for name in (*umath.__cpu_baseline__, *umath.__cpu_dispatch__) if found.get(name))


def _probe() -> str:
    """Return the SHA-256 of the gradient of one fixed network on fixed rows, in both types.

    The products are large enough, and uneven enough, to go through the main and the edge kernels of a BLAS; further
    functions that training uses follow.
    """
    sha = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        random = np.random.Generator(np.random.Philox(7))
        shapes = [(301, 67), (67, 259), (259, 10), (301, 10)]
        arrays: list[Any] = [random.normal(size=shape).astype(dtype) for shape in shapes]
        x, w, v, y = arrays
        h = np.tanh(x @ w)
        m = h @ v
        e = np.exp(m - m.max(axis=1, keepdims=True))
        d = e / np.add.reduce(e, axis=1, keepdims=True) - y
        back = (d @ v.T) * (1 - h * h)
        functions = (np.log1p(np.exp(-np.abs(back))), np.expm1(back), np.log(e), np.sqrt(e))
        for values in (h.T @ d, np.add.reduce(d, axis=0), x.T @ back, *functions):
            sha.update(np.ascontiguousarray(values).data)
    return sha.hexdigest()
