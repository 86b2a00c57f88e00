"""How a worker's stream reads, by what it asks of its socket."""

import socket

from lockstep_proto import channels
from lockstep_proto.calls import Opened, ServerCall
from lockstep_worker.stream import Stream


def room(num_bytes):
    return memoryview(bytearray(num_bytes))


class Socket:
    """Gives what it has in pieces; says with which flags each was asked for."""

    def __init__(self):
        self.server = ServerCall(room, channels.MAX_MESSAGE_BYTES)
        self.pieces = []
        self.flags = []

    def recv_into(self, buffer, num_bytes, flags):
        self.flags.append(flags)
        piece = self.pieces.pop(0)
        buffer[: len(piece)] = piece
        return len(piece)

    def sendmsg(self, buffers, *_):
        data = b"".join(map(bytes, buffers))
        self.server.buffer()[: len(data)] = data
        self.opened = Opened(channels.EXCHANGE_PATH) in self.server.received(len(data))
        return len(data)

    def sends(self, message):
        """What the server writes to send a message."""
        self.server.send(message)
        outgoing = self.server.outgoing
        data = b"".join(map(bytes, outgoing.buffers))
        outgoing.sent(len(data))
        return data


def test_the_rest_of_a_message_is_waited_for_at_once():
    stream, connected = Stream("localhost:1"), Socket()
    stream._socket = connected
    stream.send(b"hello")
    assert connected.opened
    data = connected.sends(bytes(10_000))
    connected.pieces = [data[:1000], data[1000:], connected.sends(b"small"), connected.sends(b"there already")]
    came = [bytes(message) for wait in (True, True, True, False) for message in stream.receive(wait=wait)]
    assert came == [bytes(10_000), b"small", b"there already"]
    assert connected.flags == [0, socket.MSG_WAITALL, 0, socket.MSG_DONTWAIT]
