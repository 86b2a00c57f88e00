"""How the flat vector is cut for the transport. The cut shows in no bits, so all of this is free to be tuned."""

import math

from lockstep_proto import bfloat16
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.v1 import job_pb2
from lockstep_server import norms

CHUNK_BYTES = 1024 * 1024  # large enough that a message's cost in Python is small beside its bytes
MANY_CHUNKS = 16  # what cannot be overlapped, the last chunk's way, is then little beside the others'
LEAST_ELEMENTS = 1 << 16  # of many chunks: a message of fewer would cost more time than its bytes
WORTH_IT = 0.25  # of the vector, that a layer must have for the chunks to be cut to its length
SHORTEST = 0.75  # of its length, that a chunk may be cut to


def chunking_of(spec: job_pb2.JobSpec, layout: Layout, *, far: bool) -> Chunking:
    """Return how the flat vector is cut.

    Where the network may be slow, because workers are `far`, on other machines, or because the job's values travel as
    bfloat16, chunks are so small that there are many of them: the sooner one has come, the sooner its update is on its
    way back.

    The first layer is computed first and needed first. Where it is a large part of the vector, but has few chunks, one
    of them ends with it if some number of equal chunks makes it up: then it is whole again while the others are still
    computed. Otherwise chunks are whole blocks of the norms.
    """
    most = CHUNK_BYTES // layout.dtype.itemsize
    if far or bfloat16.travels(spec):
        most = min(most, max(math.ceil(layout.num_parameters / MANY_CHUNKS), LEAST_ELEMENTS))
    first = layout.layer_slices[0].stop
    elements = _equal_part(first, most) if first >= WORTH_IT * layout.num_parameters > WORTH_IT * most else None
    return Chunking(layout.num_parameters, elements or most // norms.BLOCK * norms.BLOCK or most)


def _equal_part(elements: int, most: int) -> int | None:
    """Return the largest part of at most so many elements that a layer is a few of; None if all are much less."""
    for number in range(math.ceil(elements / most), MANY_CHUNKS + 1):
        if elements < SHORTEST * most * number:
            return None
        if elements % number == 0:
            return elements // number
    return None
