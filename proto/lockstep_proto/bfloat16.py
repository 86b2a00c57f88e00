"""Values that travel as bfloat16: the upper half of a float32, so 8 bits of precision over the whole range.

A job with wire_dtype = bfloat16 computes in float32, and

- rounds the value of every node, leaf and root included, where it is made: a leaf when its gradient is final, a sum of
  two values, which are rounded already, after their addition in float32;
- computes steps and examinations from the parameters rounded, by workers and newcomers alike;
- updates, digests, keeps and evaluates the float32 parameters, the master; to evaluate, workers get these as they are.

What is rounded passes through two bytes unchanged, so who adds what, and where, leaves no trace in the bits. Weight,
loss and metric travel in float64, as always.

Rounding is to nearest, ties to even. What lies beyond the largest value, 3.3895e38, becomes infinite; NaN stays NaN.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto.v1 import job_pb2

Array = npt.NDArray[Any]
DTYPE = np.dtype(np.uint16)  # numpy has no bfloat16
BLOCK = 16_384  # elements; with what is needed to round them they stay in a core's cache


def travels(spec: job_pb2.JobSpec) -> bool:
    """Whether the job's gradients and parameters travel as bfloat16."""
    return spec.wire_dtype == job_pb2.WIRE_DTYPE_BFLOAT16


def round_in_place(values: Array) -> None:
    """Round a contiguous vector of float32 to values that bfloat16 has."""
    bits = values.view(np.uint32)
    half = np.empty(min(BLOCK, values.size), np.uint32)
    nan = np.empty(half.size, np.bool_)
    for lo in range(0, values.size, BLOCK):
        block = bits[lo : lo + BLOCK]
        n = block.size
        has_nan = np.isnan(values[lo : lo + BLOCK], out=nan[:n]).any()
        np.right_shift(block, 16, out=half[:n])
        half[:n] &= 1  # a tie goes to the even one: up only from an odd one
        half[:n] += 0x7FFF
        block += half[:n]
        block &= 0xFFFF0000
        if has_nan:
            values[lo : lo + BLOCK][nan[:n]] = np.nan


def pack(values: Array) -> Array:
    """Return rounded float32 values in two bytes each: what is cut off is zero."""
    packed = np.empty(values.size, DTYPE)
    return np.right_shift(values.view(np.uint32), 16, out=packed, casting="unsafe")


def pack_rounded(values: Array, packed: Array) -> None:
    """Write float32 values, none of which may be NaN, to `packed`: rounded, in two bytes each."""
    bits = values.view(np.uint32)
    scratch = np.empty(min(BLOCK, values.size), np.uint32)
    for lo in range(0, values.size, BLOCK):
        block = bits[lo : lo + BLOCK]
        up = scratch[: block.size]
        np.right_shift(block, 16, out=up)
        up &= 1  # a tie goes to the even one
        up += 0x7FFF
        up += block
        np.right_shift(up, 16, out=packed[lo : lo + BLOCK], casting="unsafe")


def unpack(packed: Array, out: Array) -> None:
    """Write packed values to `out`, a vector of float32."""
    np.left_shift(packed, 16, out=out.view(np.uint32), dtype=np.uint32)
