import subprocess
import sys

import numpy as np

from lockstep_proto import numerics
from lockstep_proto.v1 import numerics_pb2


def test_the_fingerprint_knows_every_field():
    found = numerics.fingerprint()
    for field in found.DESCRIPTOR.fields:
        assert getattr(found, field.name), field.name
    assert found.numpy_version == np.__version__
    assert found.blas_threads == 1, "tests run on one BLAS thread"


def test_another_process_has_the_same_fingerprint():
    code = "from lockstep_proto.numerics import fingerprint; print(fingerprint().SerializeToString(True).hex())"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert numerics_pb2.NumericsFingerprint.FromString(bytes.fromhex(other)) == numerics.fingerprint()


def test_a_difference_names_the_first_field_with_both_values():
    a = numerics_pb2.NumericsFingerprint(numpy_version="2.1", blas_core="Zen", probe="aa")
    b = numerics_pb2.NumericsFingerprint(numpy_version="2.1", blas_core="Haswell", probe="bb")
    assert numerics.difference(a, b) == "blas_core: Zen against Haswell"
    assert numerics.difference(a, a) is None
