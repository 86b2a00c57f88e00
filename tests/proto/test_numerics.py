import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from lockstep_proto import numerics
from lockstep_proto.v1 import numerics_pb2


def test_the_fingerprint_knows_every_field():
    found = numerics.fingerprint()
    for field in found.DESCRIPTOR.fields:
        assert getattr(found, field.name), field.name
    assert found.numpy_version == np.__version__
    assert found.blas_threads == 1, "tests run on one BLAS thread"


def fingerprint_elsewhere(**environment):
    """The fingerprint of another process with other variables."""
    code = "from lockstep_proto.numerics import fingerprint; print(fingerprint().SerializeToString().hex())"
    env = os.environ | environment
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env).stdout
    return numerics_pb2.NumericsFingerprint.FromString(bytes.fromhex(other))


def test_another_process_has_the_same_fingerprint():
    assert fingerprint_elsewhere() == numerics.fingerprint()


def test_threads_are_those_that_blas_reports():
    threads = min(2, len(os.sched_getaffinity(0)))
    assert fingerprint_elsewhere(OPENBLAS_NUM_THREADS=str(threads)).blas_threads == threads


X86 = platform.machine() == "x86_64"
OLD_CORE = "Nehalem" if X86 else "ARMV8"  # every OpenBLAS for this kind of machine has its kernels


def test_other_kernels_are_named():
    other = fingerprint_elsewhere(OPENBLAS_CORETYPE=OLD_CORE)
    assert other.blas_core.upper() == OLD_CORE.upper()
    mine = numerics.fingerprint().blas_core
    expected = None if other.blas_core == mine else f"blas_core: {mine} against {other.blas_core}"
    assert numerics.difference(numerics.fingerprint(), other) == expected


def test_cpu_features_are_those_numpy_uses():
    mine = numerics.fingerprint().cpu_features.split()
    umath = np._core._multiarray_umath
    assert mine[: len(umath.__cpu_baseline__)] == umath.__cpu_baseline__
    dispatched = mine[len(umath.__cpu_baseline__) :]
    assert set(dispatched) <= set(umath.__cpu_dispatch__)
    less = fingerprint_elsewhere(NPY_DISABLE_CPU_FEATURES=" ".join(dispatched))
    assert less.cpu_features.split() == umath.__cpu_baseline__


@pytest.mark.parametrize("function", ["tanh", "exp", "expm1", "log", "log1p"])
def test_the_probe_sees_the_last_bit_of_every_function_that_training_uses(function, monkeypatch):
    """A function that is off by one bit in one element, wherever the probe calls it, gives another probe."""
    probe = numerics._probe()
    original = getattr(np, function)

    def off_by_one_bit(*args, **kwargs):
        values = original(*args, **kwargs)
        values.flat[-1] = np.nextafter(values.flat[-1], np.inf)
        return values

    monkeypatch.setattr(np, function, off_by_one_bit)
    assert numerics._probe() != probe


def test_importing_it_is_cheap():
    code = "import sys, lockstep_proto.numerics; print('threadpoolctl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_difference_names_the_first_field_with_both_values():
    a = numerics_pb2.NumericsFingerprint(numpy_version="2.1", blas_core="Zen", probe="aa")
    b = numerics_pb2.NumericsFingerprint(numpy_version="2.1", blas_core="Haswell", probe="bb")
    assert numerics.difference(a, b) == "blas_core: Zen against Haswell"
    assert numerics.difference(a, a) is None
