"""Messages of the exchange, as the other end would send them."""

from lockstep_proto import codec
from lockstep_proto.codec import ParameterChunk


def parameter_message(chunk):
    """Return the message of the server that holds a chunk of the parameters."""
    header, data = codec.encode_parameter_chunk(chunk._replace(data=bytes(chunk.data)))
    return header + data


def read(message):
    """Return what a worker makes of a message that the server would send."""
    return message if isinstance(message, ParameterChunk) else codec.decode_server_message(message)
