"""Messages of the exchange, as the other end would send them."""

from lockstep_proto import codec


def parameter_message(chunk):
    """Return the message of the server that holds a chunk of the parameters."""
    message = bytearray(codec.PARAMETERS_HEADER_BYTES) + bytes(chunk.data)
    codec.write_parameter_header(memoryview(message), chunk.attempt, chunk.version, chunk.chunk_index)
    return bytes(message)
