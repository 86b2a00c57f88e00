"""How the flat vector is cut for the transport. The cut shows in no bits, so all of this is free to be tuned."""

from lockstep_proto import bfloat16
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.v1 import job_pb2
from lockstep_server import norms

CHUNK_BYTES = 1024 * 1024  # large enough that a message's cost in Python is small beside its bytes
MANY_CHUNKS = 16  # what cannot be overlapped, the last chunk's way, is then little beside the others'
LEAST_ELEMENTS = 1 << 14  # of many chunks: a message of fewer would cost more time than its bytes


def chunking_of(spec: job_pb2.JobSpec, layout: Layout, *, far: bool) -> Chunking:
    """Return how the flat vector is cut.

    Where the network may be slow, because workers are `far`, on other machines, or because the job's values travel as
    bfloat16, chunks are so small that there are many of them: the sooner one has come, the sooner its update is on its
    way back.

    The first layer is computed first and needed first. Where it has few chunks, they end where it does: then it is
    whole again while the others are still computed. Where it has many, they are whole blocks of the norms.
    """
    most = CHUNK_BYTES // layout.dtype.itemsize
    if far or bfloat16.travels(spec):
        most = min(most, max(layout.num_parameters // MANY_CHUNKS, LEAST_ELEMENTS))
    if layout.num_parameters <= most:
        return Chunking(layout.num_parameters, most)
    first = layout.layer_slices[0].stop
    if most // 2 < first <= MANY_CHUNKS * most:
        return Chunking(layout.num_parameters, -(-first // -(-first // most)))
    return Chunking(layout.num_parameters, most // norms.BLOCK * norms.BLOCK or most)
