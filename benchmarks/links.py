"""Two network namespaces with a slow link between them, made for a benchmark and removed after it. Needs root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BURST = "64kb"
SEGMENTS_BYTES = 1 << 15  # handed to the link at once, as to a card that cuts and joins packets itself
LATENCY = "50ms"  # that a packet may wait in the bucket; then it is dropped
SERVER_HOST, WORKERS_HOST = "10.213.7.1", "10.213.7.2"


@dataclass(frozen=True)
class Link:
    """The commands that run another one at each end, and the address of the server's."""

    server: Sequence[str]
    workers: Sequence[str]
    host: str


@contextlib.contextmanager
def link(rate: str) -> Iterator[Link]:
    """Make two namespaces, joined by a pair of veth that carry `rate` (as tc writes it) in each direction."""
    server, workers = (f"lockstep-{os.getpid()}-{end}" for end in ("server", "workers"))
    ends = {server: ("lks0", SERVER_HOST), workers: ("lks1", WORKERS_HOST)}
    made = []
    try:
        for name in ends:
            _run("ip", "netns", "add", name)
            made.append(name)
        _in(server, "ip", "link", "add", "lks0", "type", "veth", "peer", "name", "lks1", "netns", workers)
        for name, (device, host) in ends.items():
            _in(name, "ip", "address", "add", f"{host}/30", "dev", device)
            for each in ("lo", device):
                _in(name, "ip", "link", "set", each, "up")
            _in(name, "ip", "link", "set", device, "gso_max_size", str(SEGMENTS_BYTES))
            shape = ("tbf", "rate", rate, "burst", BURST, "latency", LATENCY)
            _in(name, "tc", "qdisc", "add", "dev", device, "root", *shape)
        yield Link(_inside(server), _inside(workers), SERVER_HOST)
    finally:
        for name in made:
            _run("ip", "netns", "delete", name)


def _inside(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


def _in(name: str, *command: str) -> None:
    _run(*_inside(name), *command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}; network namespaces and tc need root")
