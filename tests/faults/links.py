"""Links that can be cut and slowed: a network namespace for each worker, with a cable of its own to this one.

The server listens at an address of the loopback device, which only these namespaces have a way to.
"""

import contextlib
import os
import subprocess


def do(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Link:
    """One namespace and its cable. Directions are the worker's: "out" is what it sends, "in" what it hears."""

    def __init__(self, net, number):
        self._name = f"ls{os.getpid()}-{number}"
        self._device = f"ls{os.getpid()}.{number}"
        self._server, address = f"10.199.{net}.1", f"10.199.{net}.{number + 2}"
        do("ip", "netns", "add", self._name)
        try:
            self._connect(address)
        except BaseException:
            self.close()
            raise

    def _connect(self, address):
        do("ip", "link", "add", self._device, "type", "veth", "peer", "name", "cable", "netns", self._name)
        do("ip", "link", "set", self._device, "up")
        do("ip", "route", "add", f"{address}/32", "dev", self._device, "src", self._server)
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "address", "add", f"{address}/32", "dev", "cable")
        self._inside("ip", "link", "set", "cable", "up")
        self._inside("ip", "route", "add", f"{self._server}/32", "dev", "cable")

    @property
    def slot(self):
        """What a command begins with to run there."""
        return ("ip", "netns", "exec", self._name)

    def cut(self, *directions):
        """Drop every packet in these directions."""
        for direction in directions:
            self._inside("iptables", "-A", {"in": "INPUT", "out": "OUTPUT"}[direction], "-j", "DROP")

    def mend(self):
        """Drop none, delay none."""
        self._inside("iptables", "-F")
        with contextlib.suppress(subprocess.CalledProcessError):  # was not slowed
            self._inside("tc", "qdisc", "del", "dev", "cable", "root")

    def slow(self, bytes_per_s):
        """Let so much of what the worker sends through."""
        limits = ["rate", f"{8 * bytes_per_s}bit", "burst", "32kb", "latency", "2s"]
        self._inside("tc", "qdisc", "add", "dev", "cable", "root", "tbf", *limits)

    def close(self):
        with contextlib.suppress(subprocess.CalledProcessError):  # was not made
            do("ip", "link", "del", self._device)  # at once; that of a namespace would take its time
        do("ip", "netns", "del", self._name)

    def _inside(self, *command):
        do("ip", "netns", "exec", self._name, *command)


class Links:
    """So many links, and the address that a server can be reached at through all of them."""

    def __init__(self, number):
        net = os.getpid() % 250
        self.host = f"10.199.{net}.1"
        self._address = f"{self.host}/32"
        do("ip", "address", "add", self._address, "dev", "lo")
        self._links = []
        try:
            for i in range(number):
                self._links.append(Link(net, i))
        except BaseException:
            self.close()
            raise

    def __getitem__(self, i):
        return self._links[i]

    @property
    def slots(self):
        return [link.slot for link in self._links]

    def close(self):
        for link in self._links:
            link.close()
        do("ip", "address", "del", self._address, "dev", "lo")
