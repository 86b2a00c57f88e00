"""How both ends of a gRPC connection are set up."""

import socket
import sys
from collections.abc import Sequence

import grpc

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # a chunk is about 1 MiB; a spec with thousands of layers stays far below
KEEPALIVE_MS = 10_000  # a peer is asked for a sign of life this long after its last one
KEEPALIVE_TIMEOUT_MS = 5_000  # and is taken for dead if it gives none
FLEET_HEARTBEAT_S = 2.0  # a fleet that has nothing to say says so this often
FLEET_LEASE_S = 10.0  # a fleet that is silent for longer is taken for gone until it attaches again
EXCHANGE_PATH = "/lockstep.v1.TrainingService/Exchange"  # the method that workers call
Options = Sequence[tuple[str, int]]

_BOTH_ENDS: Options = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # which counts in its stead, and is a minute by default
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def server_options() -> Options:
    """Return the server's channel arguments.

    gRPC would share a port with another server silently unless told not to, and would close the connection of a
    client whose pings came late and then in a burst, as they do after a machine stood still.
    """
    pings: Options = (("grpc.http2.max_ping_strikes", 0),)
    return (*_BOTH_ENDS, ("grpc.so_reuseport", 0), *pings)


def channel_options() -> Options:
    """Return the channel arguments of a client, worker or fleet."""
    redial: Options = (
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # what gRPC gives one attempt, however fast the next may follow
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),  # a cluster's own traffic never goes through a web proxy
    )
    return (*_BOTH_ENDS, *redial)


def exchange_address(server: str) -> tuple[str, int]:
    """Return host and port that the workers of the server at "host:port" come to: the port after its own."""
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port) + 1


def prepare(connected: socket.socket) -> None:
    """Have small messages sent at once, and a peer that is gone without a word noticed in about the time as above."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        seconds, timeout_s = KEEPALIVE_MS // 1000, KEEPALIVE_TIMEOUT_MS // 1000
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, timeout_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_MS + KEEPALIVE_TIMEOUT_MS)


def connect(address: str) -> grpc.Channel:
    """Open a channel to the server at "host:port". It connects at the first call."""
    return grpc.insecure_channel(address, options=list(channel_options()))
