"""A server that sends the parameters in one piece, as most systems do. Run as a process."""

from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.v1 import job_pb2
from lockstep_server import main, update


def in_one_piece(spec: job_pb2.JobSpec, layout: Layout, *, far: bool) -> Chunking:
    """Do not cut the flat vector."""
    return Chunking(layout.num_parameters, layout.num_parameters)


vars(update)["chunking_of"] = in_one_piece  # the networks that it is used for are below what a message may have

if __name__ == "__main__":
    main.main()
