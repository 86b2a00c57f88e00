"""Where the server is, and how a command names it."""

import os
import re

DEFAULT = "127.0.0.1:50051"


def of_commands() -> str:
    """Return the server that commands talk to if they are told no other: $LOCKSTEP_SERVER, or else the default one."""
    return os.environ.get("LOCKSTEP_SERVER") or DEFAULT


def option(address: str) -> str:
    """Return what a command needs to reach this server: " --server HOST:PORT", or nothing."""
    return "" if address == of_commands() else f" --server {address}"


def check(address: str) -> str:
    """Return the address. Raises ValueError unless it is written host:port."""
    if not re.fullmatch(r"[^/\s]+:\d{1,5}", address):
        raise ValueError(f"a server's address is written host:port, like {DEFAULT}; got {address!r}")
    return address
