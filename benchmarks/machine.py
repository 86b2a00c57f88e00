"""What the numbers were measured on."""

import os
import platform
from pathlib import Path

from lockstep_proto.numerics import fingerprint


def describe() -> str:
    """Return the machine and its arithmetic, in a few lines."""
    numerics = fingerprint()
    return "\n".join(
        [
            f"CPU     {_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
            f"numpy   {numerics.numpy_version}, {numerics.blas} (kernels: {numerics.blas_core})",
            f"system  Python {platform.python_version()}, {numerics.libc}, Linux {platform.release()}",
        ]
    )


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
