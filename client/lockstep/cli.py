"""The `lockstep` command.

Exit codes: 0 ok, 1 the job failed (of verify and diff: different), 2 bad input, 3 no server or no permission,
4 not found, 124 timeout, 130 interrupted (the job goes on).
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lockstep import addresses, background, commands
from lockstep.errors import (
    ClusterError,
    InvalidSpecError,
    JobFailedError,
    LockstepError,
    NotFoundError,
    PermissionDeniedError,
    ServerUnavailableError,
    WaitTimeoutError,
)

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (JobFailedError, 1),
    (ServerUnavailableError, 3),
    (PermissionDeniedError, 3),
    (ClusterError, 3),
    (NotFoundError, 4),
    (WaitTimeoutError, 124),
    (KeyboardInterrupt, 130),
    (LockstepError, 2),
    (ValueError, 2),
    (OSError, 2),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads us has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (LockstepError, KeyboardInterrupt, ValueError, OSError) as error:
        if not isinstance(error, KeyboardInterrupt):
            print(_describe(error), file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))


def _describe(error: BaseException) -> str:
    if isinstance(error, InvalidSpecError) and len(error.violations) > 1:
        lines = "\n".join(f"  {violation}" for violation in error.violations)
        return f"lockstep: the spec breaks {len(error.violations)} rules:\n{lines}"
    return f"lockstep: {error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lockstep",
        description="Trains feed-forward networks with the same bits on any number of workers.",
        epilog=(__doc__ or "").split("\n\n", 1)[1],
    )
    parser.add_argument("--version", action="version", version=f"lockstep {_version()}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_cluster_verbs(verbs)
    _add_job_verbs(verbs)
    _add_file_verbs(verbs)
    return parser


def _add(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], None],
    text: str,
    *,
    server: bool = True,
    reads: bool = False,
    job: bool = False,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(command=command)
    if job:
        verb.add_argument("id", help="the job's id, or the beginning of it")
    if server:
        verb.add_argument(
            "--server",
            default=addresses.of_commands(),
            metavar="HOST:PORT",
            help="the server (default: $LOCKSTEP_SERVER, here %(default)s)",
        )
    if reads:
        verb.add_argument("--format", choices=("text", "json"), default="text", help="what to print (default text)")
    return verb


def _add_cluster_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up = _add(verbs, "up", commands.up, "start a local cluster in the background", server=False)
    background.add_options(up)
    _add(verbs, "down", commands.down, "end the local cluster in the background", server=False)
    demo = _add(verbs, "demo", commands.demo, "train a classifier of digits on a cluster of its own", server=False)
    demo.add_argument("--workers", type=background.positive, default=2, help="workers (default 2)")
    demo.add_argument("--cpus-per-worker", type=background.positive, default=1, help="CPUs of each (default 1)")
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("lockstep-demo.safetensors"), help="where the model goes"
    )
    _add(verbs, "cluster", commands.cluster, "show the server, its fleet and workers", reads=True)
    _add(verbs, "health", commands.health, "ask whether the server serves", reads=True)


def _add_job_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    submit = _add(verbs, "submit", commands.submit, "queue a job", reads=True)
    submit.add_argument("file", type=Path, help="a job file, TOML or JSON")
    submit.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a field; repeatable")
    submit.add_argument("--watch", action="store_true", help="follow the job to its end")
    submit.add_argument("--request-id", help="the same id gives the same job")
    submit.add_argument("--timeout", type=float, metavar="SECONDS", help="give up watching after so long")
    listing = _add(verbs, "list", commands.list_jobs, "list jobs, newest first", reads=True)
    listing.add_argument("--limit", type=background.positive, default=100, help="at most so many (default 100)")
    _add(verbs, "status", commands.status, "show how a job stands", reads=True, job=True)
    watch = _add(verbs, "watch", commands.watch, "follow a job to its end", reads=True, job=True)
    watch.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long; the job goes on")
    _add(verbs, "checkpoints", commands.checkpoints, "list a job's kept checkpoints", reads=True, job=True)
    _add_proofs(verbs)
    _add(verbs, "stop", commands.stop, "end a job between two steps; it keeps its model", job=True)
    _add(verbs, "pause", commands.pause, "pause a job between two steps", job=True)
    _add(verbs, "resume", commands.resume, "take a paused job up again", job=True)
    _add(verbs, "delete", commands.delete, "remove a job and its files", job=True)
    download = _add(verbs, "download", commands.download, "save a job's model", job=True)
    download.add_argument(
        "-o", "--output", type=Path, default=Path("model.safetensors"), help="where (default %(default)s)"
    )
    download.add_argument("--best", action="store_true", help="the one with the lowest validation loss")


def _add_proofs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = _add(verbs, "verify", commands.verify, "recompute a job and compare every bit", reads=True, job=True)
    begin = "begin at the newest kept checkpoint at or before it, else as the job began (default: at the oldest kept)"
    verify.add_argument("--from", dest="from_step", type=int, metavar="STEP", help=begin)
    verify.add_argument(
        "--to", dest="to_step", type=int, metavar="STEP", help="end after this many steps (default: the job's last)"
    )
    verify.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long")
    verify.epilog = "It is recomputed by a job of its own, deleted afterwards. Exit codes: 0 equal, 1 different."
    diff = _add(verbs, "diff", commands.diff, "tell where two jobs part, and what differs", reads=True, job=True)
    diff.add_argument("other", help="the other job's id, or the beginning of it")
    diff.epilog = "Exit codes: 0 no difference in the steps that both have, 1 different, or nothing to compare."


def _add_file_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    predict = _add(verbs, "predict", commands.predict, "predict from a CSV file", server=False, reads=True)
    predict.add_argument("model", type=Path, help="a saved model")
    predict.add_argument("data", type=Path, help="a CSV file with a header")
    predict.add_argument("-o", "--output", type=Path, help="a CSV file for the predictions (default: print them)")
    validate = _add(verbs, "validate", commands.validate, "check a job file", server=False, reads=True)
    validate.add_argument("file", type=Path, help="a job file, TOML or JSON")
    validate.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a field; repeatable")


def _version() -> str:
    try:
        return version("lockstep-training")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
