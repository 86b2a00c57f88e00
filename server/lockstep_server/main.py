"""`lockstep-server`: runs a server until a signal, or the end of its parent, ends it."""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from lockstep_server import logs
from lockstep_server.errors import StartError
from lockstep_server.server import Server
from lockstep_server.settings import Settings, read_arguments

END_S = 27.0  # the end of a server takes no longer; those who start it may kill it after 30 s

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a server; ends the process with 0 after an orderly end and 1 if it cannot start."""
    logs.configure()
    try:
        asyncio.run(serve(read_arguments(arguments)))
    except StartError as error:
        log.error("%s", error)
        sys.exit(1)


async def serve(settings: Settings) -> None:
    """Run a server until it is told to end; one line of JSON on stdout says when and where. Raises StartError."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    if settings.exit_with_parent:
        threading.Thread(target=_wait_for_parent, args=(loop, ending), daemon=True).start()
    server = Server(settings)
    await server.start()
    ready = {"grpc": server.grpc_address, "http": server.http_address, "pid": os.getpid()}
    print(json.dumps(ready), flush=True)
    log.info("serving, grpc=%s http=%s", server.grpc_address, server.http_address)
    await ending.wait()
    log.info("ending")
    _end_by_force(END_S)
    await server.stop()
    log.info("ended")


def _end_by_force(after_s: float) -> None:
    """End the process after so long, whatever a slow disk still keeps it busy with: files are whole or not there."""

    def end() -> None:
        log.warning("ended by force after %g s; jobs go on from their last good checkpoints", after_s)
        os._exit(0)

    timer = threading.Timer(after_s, end)
    timer.daemon = True
    timer.start()


def _wait_for_parent(loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    # os.read, since a thread left in a read of sys.stdin holds a lock that the interpreter's end waits for
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(ending.set)


if __name__ == "__main__":
    main()
