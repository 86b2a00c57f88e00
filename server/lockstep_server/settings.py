"""The settings of a server: made once from the command line, then frozen."""

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lockstep_server.errors import StartError

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server runs. Raises StartError when made with a value that cannot be."""

    state_dir: Path  # jobs, history, models, checkpoints and uploads
    host: str = "127.0.0.1"  # address of all ports
    port: int = 50051  # gRPC, and the one after it for workers; 0 takes two free ones
    http_port: int = 9464  # metrics, health and the web page; 0 takes a free one
    allow_remote: bool = False  # whether `host` may be reached from other machines
    lease_s: float = 2.0  # a hung worker delays a step by at most this
    checkpoint_s: float = 30.0  # a killed server loses at most this much computing
    keep_checkpoints: int = 3  # per job: the newest; a damaged one is passed over. The best is kept beside them
    keep_finished_s: float = 30 * DAY_S  # after it, ended jobs are deleted
    keep_uploads_s: float = 7 * DAY_S  # after it, uploads that no job needs are deleted
    max_upload_bytes: int = 64 << 30  # one file
    max_unsummed_bytes: int = 1 << 30  # of a job's step: workers that are ahead of others wait when so much has come
    share_memory: bool = True  # with workers on this machine: what they exchange does not go through sockets then
    exit_with_parent: bool = False  # whether the end of stdin ends the server

    def __post_init__(self) -> None:
        if not (self.allow_remote or is_loopback(self.host)):
            raise StartError(
                f"--host {self.host} can be reached from other machines; add --allow-remote if that is meant",
            )
        for field, largest in (("port", 65_534), ("http_port", 65_535)):
            _check(field, getattr(self, field), 0 <= getattr(self, field) <= largest, f"from 0 to {largest}")
        for field in (
            "lease_s",
            "checkpoint_s",
            "keep_finished_s",
            "keep_uploads_s",
            "max_upload_bytes",
            "max_unsummed_bytes",
        ):
            _check(field, getattr(self, field), getattr(self, field) > 0, "more than 0")
        _check("keep_checkpoints", self.keep_checkpoints, self.keep_checkpoints >= 1, "at least 1")

    @property
    def far(self) -> bool:
        """Whether workers may be on other machines."""
        return not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line (default: that of this process); argparse ends the process on a wrong one."""
    given = vars(_parser().parse_args(arguments))
    for days in ("keep_finished", "keep_uploads"):
        given[f"{days}_s"] = given.pop(f"{days}_days") * DAY_S
    return Settings(**given)


def _parser() -> argparse.ArgumentParser:
    default = Settings(state_dir=Path())
    parser = argparse.ArgumentParser(prog="lockstep-server", description="The Lockstep parameter server.")
    add = parser.add_argument
    add("--state-dir", type=Path, required=True, metavar="DIR", help="where jobs, models and uploads are kept")
    add("--host", default=default.host, help="address of all ports (default: %(default)s)")
    add(
        "--port",
        type=int,
        default=default.port,
        help="gRPC port; workers come to the one after it; 0 for free ones (default: %(default)s)",
    )
    add("--http-port", type=int, default=default.http_port, help="metrics and health (default: %(default)s)")
    add("--allow-remote", action="store_true", help="allow a --host that other machines can reach")
    add("--lease-s", type=float, default=default.lease_s, help="a worker silent for longer is taken for dead")
    add("--checkpoint-s", type=float, default=default.checkpoint_s, help="seconds between checkpoints of a job")
    add("--keep-checkpoints", type=int, default=default.keep_checkpoints, help="newest checkpoints kept per job")
    add("--keep-finished-days", type=float, default=default.keep_finished_s / DAY_S, help="ended jobs are kept for")
    add("--keep-uploads-days", type=float, default=default.keep_uploads_s / DAY_S, help="unused uploads are kept for")
    add("--max-upload-bytes", type=int, default=default.max_upload_bytes, help="largest upload")
    add(
        "--max-unsummed-bytes",
        type=int,
        default=default.max_unsummed_bytes,
        help="workers that are ahead wait when so much of a step cannot be summed yet (default: %(default)s)",
    )
    add(
        "--no-shared-memory",
        dest="share_memory",
        action="store_false",
        help="exchange all with workers on this machine through sockets, too",
    )
    add("--exit-with-parent", action="store_true", help="end when stdin ends")
    return parser


def _check(field: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise StartError(f"{field} must be {rule}, got {value}; see lockstep-server --help")
