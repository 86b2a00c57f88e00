"""Whom the endpoint reads from, over sockets."""

import asyncio
import socket

import pytest

from lockstep_proto.calls import ClientCall
from lockstep_server.endpoint import PATH, Endpoint
from lockstep_server.outbox import Outbox


class Exchange:
    """Opens conversations that keep what they are told."""

    def __init__(self):
        self.opened = asyncio.Queue()

    def open(self, call):
        conversation = Conversation(call)
        self.opened.put_nowait(conversation)
        return conversation


class Conversation:
    def __init__(self, call):
        self.outbox = Outbox(call.filled, call.listen)
        self.messages = asyncio.Queue()

    def next(self):
        message = self.outbox.pop()
        return () if message is None else (message,)

    def received(self, message):
        self.messages.put_nowait(bytes(message))

    def ended(self):
        pass

    async def hears(self, *messages):
        """Wait for the next messages, which are these."""
        assert [await self.messages.get() for _ in messages] == list(messages)


class Worker:
    """A worker's end: a call on a socket."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self._call = ClientCall("host", PATH, lambda num_bytes: memoryview(bytearray(num_bytes)), 1 << 20)

    def say(self, *messages):
        self.socket.sendall(self.encoded(*messages))

    def encoded(self, *messages):
        """What is written to the socket."""
        for message in messages:
            self._call.send(message)
        outgoing = self._call.outgoing
        data = b"".join(map(bytes, outgoing.buffers))
        outgoing.sent(len(data))
        return data

    async def hears(self, message):
        """Wait until a message has come."""
        self.socket.setblocking(False)
        came = b""
        while message not in came:
            came += await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)


async def come(endpoint, exchange):
    """Let a worker in. Return it and its conversation."""
    worker = Worker(endpoint.port)
    worker.say(b"hello")
    conversation = await exchange.opened.get()
    await conversation.hears(b"hello")
    return worker, conversation


@pytest.fixture
def play():
    """Plays a scene between two workers and an endpoint."""

    async def with_two(scene):
        exchange = Exchange()
        endpoint = Endpoint(exchange, "127.0.0.1", 0, lambda *_: None)
        endpoint.start()
        pairs = [await come(endpoint, exchange) for _ in range(2)]
        try:
            await scene(*pairs)
        finally:
            endpoint.close()
            for worker, _ in pairs:
                worker.socket.close()

    return lambda scene: asyncio.run(with_two(scene))


def test_who_is_not_listened_to_is_not_read_from_until_it_is_again(play):
    async def scene(held, other):
        worker, conversation = held
        conversation.outbox.listen(False)
        worker.say(b"one", b"two")
        for message in (b"later", b"later still"):  # what came before would have been read before, or with it
            other[0].say(message)
            await other[1].hears(message)
        assert conversation.messages.empty()
        conversation.outbox.put(None, b"parameters")
        await worker.hears(b"parameters")
        assert conversation.messages.empty()
        worker.say(b"three")
        conversation.outbox.listen(True)
        await conversation.hears(b"one", b"two", b"three")

    play(scene)


def test_a_large_message_is_taken_in_when_much_of_its_rest_has_come(play, monkeypatch):
    """The least amounts that a reader waits for are counted as they are told to the system."""
    told, setting = [], socket.socket.setsockopt

    def counted(self, level, option, value):
        if option == socket.SO_RCVLOWAT:
            told.append(value)
        setting(self, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", counted)
    large = bytes(50_000)  # within the window that a connection begins with

    async def scene(slow, other):
        worker, conversation = slow
        data = worker.encoded(large)
        worker.socket.sendall(data[:1000])
        other[0].say(b"meanwhile")
        await other[1].hears(b"meanwhile")
        worker.socket.sendall(data[1000:])
        worker.say(b"small")
        await conversation.hears(large, b"small")

    play(scene)
    assert max(told) > 10_000, "a frame is as large as that at first"
    assert told[-1] == 1, "small messages are read at once"
