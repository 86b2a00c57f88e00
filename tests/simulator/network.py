"""The network between processes: streams of whole messages that are late, held up, cut off or fall silent.

A stream has two pipes, one a direction. A pipe keeps its order; between pipes nothing is promised. What a real
transport does beside carrying messages is here too: flow control, refused and timed-out dials, and keepalive, which
breaks a connection whose other end has answered no ping for a while.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from tests.simulator.loop import Loop, Process

KEEPALIVE_S = 15.0  # as channels.py sets it: pings every 10 s, answered within 5 s
CONNECT_S = 5.0  # a dial that nobody answers
WINDOW_BYTES = 3000  # a writer waits while so much is unread: some chunks of the tiny networks
EPSILON_S = 1e-9  # between two messages that arrive together: a heap does not keep the order of equal times
Code = grpc.StatusCode


class Failure(grpc.RpcError):
    """How a call failed, as gRPC tells it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


@dataclass(frozen=True)
class End:
    """The last thing in a pipe: an orderly end, or a failure."""

    failure: Failure | None = None


def unavailable(details: str) -> End:
    return End(Failure(Code.UNAVAILABLE, details))


class Pipe:
    """One direction of a stream. What is sent arrives later, in order; `wake` is called when something has come."""

    def __init__(self, network: "Network", sender: Process, receiver: Process, name: str) -> None:
        self.sender = sender
        self.receiver = receiver
        self.ended = False  # the receiver has seen the end
        self.is_slow = False
        self.broke: Callable[[], object] = lambda: None  # called in the receiver when it sees a failure
        self._network = network
        self._random = random.Random(f"{network.seed}/{name}")
        self._latency_s = 10 ** self._random.uniform(-4.0, -2.7)
        self._last_s = 0.0
        self._num_sent = 0
        self._closed = False  # nothing more is sent
        self._lost_from: int | None = None  # messages with this number and larger ones never arrive
        self._under_way: deque[tuple[int, int]] = deque()  # (number, size)
        self._held: list[tuple[int, Any]] = []
        self._arrived: deque[Any] = deque()
        self._num_unread_bytes = 0
        self._wakes_receiver: asyncio.Future[None] | None = None
        self._wakes_sender: asyncio.Future[None] | None = None

    def open_after(self, seconds: float) -> None:
        """Nothing arrives sooner."""
        self._last_s = self._network.loop.time() + seconds

    def send(self, message: "bytes | End") -> None:
        """Send a message; never waits."""
        if self.sender.alive and not self._closed:
            self._put(message)

    def end(self, end: End) -> None:
        """Send the last thing. It may be sent for a sender that died, by its machine."""
        if not self._closed:
            self._put(end)
            self._closed = True

    def abort(self, end: End) -> None:
        """Send a failure, even after an orderly end."""
        if self.sender.alive:
            self._closed = False
            self.end(end)

    async def room(self) -> None:
        """Wait until the receiver has read most of what was sent."""
        while self._num_unread_bytes > WINDOW_BYTES and not self.ended:
            self._wakes_sender = self._network.loop.create_future()
            await self._wakes_sender

    async def read(self) -> "bytes | End":
        """Return the next message, or the end again and again."""
        while not self._arrived:
            self._wakes_receiver = self._network.loop.create_future()
            await self._wakes_receiver
        message: bytes | End = self._arrived[0]
        if isinstance(message, End):
            return message
        self._arrived.popleft()
        self._num_unread_bytes -= len(message)
        _wake(self._wakes_sender)
        return message

    def cut(self, fraction: float) -> None:
        """Lose what comes after some byte of all that is under way."""
        byte = fraction * sum(size for _, size in self._under_way)
        for number, size in self._under_way:
            byte -= size
            if byte < 0:
                self._lost_from = number
                return
        self._lost_from = self._num_sent

    def broken(self, end: End) -> None:
        """The receiver's own side gives up: it sees the end at once. Runs in the receiver."""
        if not self.ended:
            self._arrived.append(end)
            self._is_over(end)

    def release(self) -> None:
        """The way is free again: what was held up arrives."""
        held, self._held = self._held, []
        for number, message in held:
            self.receiver.soon(self._arrive, number, message)

    def _put(self, message: "bytes | End") -> None:
        size = len(message) if isinstance(message, bytes) else 1
        latency_s = self._latency_s * (100.0 if self.is_slow else 1.0)
        now = self._network.loop.time()
        self._last_s = max(self._last_s + EPSILON_S, now + latency_s * (0.5 + self._random.expovariate(2.0)))
        self._under_way.append((self._num_sent, size))
        self._num_unread_bytes += size
        self.receiver.later(self._last_s - now, self._arrive, self._num_sent, message)
        self._num_sent += 1

    def _arrive(self, number: int, message: Any) -> None:
        if self.ended or (self._lost_from is not None and number >= self._lost_from):
            return
        if self._held or self._network.is_blocked(self.sender, self.receiver):
            self._held.append((number, message))
            return
        while self._under_way and self._under_way[0][0] <= number:
            self._under_way.popleft()
        self._arrived.append(message)
        if isinstance(message, End):
            self._is_over(message)
        _wake(self._wakes_receiver)

    def _is_over(self, end: End) -> None:
        self.ended = True
        if end.failure is not None:
            self.broke()
        _wake(self._wakes_receiver)
        _wake(self._wakes_sender)


class Stream:
    """One call: a pipe up to the server and one down to who called."""

    def __init__(self, network: "Network", client: Process, server: Process, method: str) -> None:
        self.client = client
        self.server = server
        self.method = method
        name = network.name(client, server)
        self.up = Pipe(network, client, server, f"{name}/up")
        self.down = Pipe(network, server, client, f"{name}/down")
        self._network = network

    @property
    def open(self) -> bool:
        """Whether either end still takes it for open."""
        ends = ((self.up, self.server), (self.down, self.client))
        return all(process.alive and not pipe.ended for pipe, process in ends)

    def cancel(self) -> None:
        """The client wants nothing more."""
        self.up.abort(End(Failure(Code.CANCELLED, "the client has cancelled the call")))
        self.down.ended = True

    def died(self, process: Process, *, silent: bool) -> None:
        """One end's process is gone; the other learns it from its machine, or from nobody."""
        pipe = self.up if process is self.client else self.down
        if silent:
            self._network.after_keepalive(self)
        else:
            pipe.end(unavailable("connection reset"))

    def cut(self, up: float, down: float, *, silent: bool) -> None:
        """Break the connection after some byte in each direction."""
        self.up.cut(up)
        self.down.cut(down)
        if silent:
            self._network.after_keepalive(self)
        else:
            self.break_soon()

    def break_soon(self) -> None:
        """Let both ends know that it is over, each at its time."""
        for pipe in (self.up, self.down):
            delay_s = self._network.random.expovariate(200.0)
            pipe.receiver.later(delay_s, pipe.broken, unavailable("connection lost"))


class Network:
    """All streams. `serve` makes a process reachable, `call` reaches it."""

    def __init__(self, loop: Loop, seed: str) -> None:
        self.loop = loop
        self.seed = seed
        self.random = random.Random(f"{seed}/network")
        self.streams: list[Stream] = []
        self.without_keepalive: set[str] = set()  # methods with heartbeats of their own, which must do
        self._services: dict[str, tuple[Process, Callable[[Stream], None]]] = {}
        self._blocked: dict[tuple[str, str], float] = {}  # (sender, receiver) -> until when
        self._num_calls: dict[tuple[str, str], int] = {}
        self._silent: set[int] = set()

    def serve(self, address: str, process: Process, accept: Callable[[Stream], None]) -> None:
        """Take calls to an address, in a process, until it dies or another takes them."""
        self._services[address] = (process, accept)

    def name(self, client: Process, server: Process) -> str:
        """A name for a further stream between two processes."""
        key = (client.name, server.name)
        self._num_calls[key] = self._num_calls.get(key, 0) + 1
        return f"{client.name}/{server.name}/{self._num_calls[key]}"

    def call(self, client: Process, address: str, method: str) -> Stream:
        """Call a method. What is wrong shows in what the stream then brings."""
        server, accept = self._services.get(address, (self.loop.root, None))
        stream = Stream(self, client, server, method)
        self.streams.append(stream)
        connect_s = 2 * self.random.expovariate(1000.0) + 0.0002
        stream.up.open_after(connect_s)
        self.loop.root.later(connect_s, self._connected, stream, accept)
        return stream

    def kill(self, process: Process, *, silent: bool) -> None:
        """Kill a process; `silent` if its machine goes with it."""
        if silent:
            self._silent.add(id(process))
        process.kill()

    async def hang_up(self, process: Process, grace_s: float) -> None:
        """Take no further calls, and end those that do not end by themselves in time."""
        self._services = {address: kept for address, kept in self._services.items() if kept[0] is not process}
        await asyncio.sleep(grace_s)
        for stream in self.streams:
            if stream.server is process:
                stream.down.end(unavailable("the server goes down"))
                stream.up.broken(unavailable("the server goes down"))

    def block(self, sender: Process, receiver: Process, seconds: float) -> None:
        """Let nothing through in one direction for a while; connections may not live that long."""
        key = (_host(sender), _host(receiver))
        until_s = self.loop.time() + seconds
        self._blocked[key] = max(until_s, self._blocked.get(key, 0.0))
        self.loop.root.later(seconds, self._unblocked, key)
        if seconds > KEEPALIVE_S:
            for stream in self._between(*key):
                self.after_keepalive(stream)

    def is_blocked(self, sender: Process, receiver: Process) -> bool:
        """Whether nothing comes through now."""
        return (_host(sender), _host(receiver)) in self._blocked

    def stopped(self, process: Process, seconds: float) -> None:
        """A process stands still, and answers no pings."""
        if seconds > KEEPALIVE_S:
            for stream in self.streams:
                if process in (stream.client, stream.server):
                    self.after_keepalive(stream)

    def after_keepalive(self, stream: Stream) -> None:
        """Break a connection that has fallen silent, once that is noticed."""
        if stream.method not in self.without_keepalive:
            self.loop.root.later(KEEPALIVE_S, stream.break_soon)

    def _connected(self, stream: Stream, accept: Callable[[Stream], None] | None) -> None:
        blocked = self.is_blocked(stream.client, stream.server) or self.is_blocked(stream.server, stream.client)
        if not stream.client.alive:
            return
        if accept is None or not stream.server.alive or blocked:
            wait_s = CONNECT_S if blocked else 0.001
            stream.client.later(wait_s, stream.down.broken, unavailable("failed to connect"))
            return
        for process in (stream.client, stream.server):
            process.died.append(lambda process=process: self._died(stream, process))  # type: ignore[misc]
        stream.server.soon(accept, stream)

    def _died(self, stream: Stream, process: Process) -> None:
        stream.died(process, silent=id(process) in self._silent)

    def _unblocked(self, key: tuple[str, str]) -> None:
        if self._blocked.get(key, 0.0) <= self.loop.time() + EPSILON_S:
            self._blocked.pop(key, None)
            for stream in self._between(*key):
                stream.up.release()
                stream.down.release()

    def _between(self, one: str, other: str) -> Iterator[Stream]:
        for stream in self.streams:
            if {_host(stream.client), _host(stream.server)} == {one, other}:
                yield stream


def _host(process: Process) -> str:
    """Where a process runs: a later server is where the earlier one was."""
    return process.name.partition("#")[0]


def _wake(waiting: "asyncio.Future[None] | None") -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
