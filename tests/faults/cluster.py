"""A cluster of real processes without Ray, whose server is started again when it dies, as a container engine would."""

import contextlib
import os
import sys
import time
import uuid
from pathlib import Path

import lockstep
from lockstep.errors import ServerUnavailableError
from lockstep_proto import failpoints
from tests.client.servers import free_port
from tests.faults.fleet import SmallFleet
from tests.faults.restarted import Restarted

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])}
LEASE_S = 1.0
PATIENT_LEASE_S = 3.0  # where none may be given up only because the machine is busy
END_S = 30.0


class Server(Restarted):
    """`lockstep-server` on one port and one state directory."""

    def __init__(self, directory, host, lease_s, *environments):
        self.address = f"{host}:{(port := free_port())}"
        arguments = ["--state-dir", str(directory), "--host", host, "--port", str(port), "--http-port", "0"]
        elsewhere = [] if host == "127.0.0.1" else ["--allow-remote", "--no-shared-memory"]  # as other machines are
        arguments += ["--lease-s", str(lease_s), *elsewhere]
        super().__init__("lockstep_server.main", arguments, *environments)


class Cluster:
    """A server, a fleet and a client, all with the same failpoints, each of which acts once.

    With `recovering` they do not act in the first process of the server. `make_fleet` is called with the server's
    address, the environment and the log.
    """

    def __init__(
        self, directory, *, make_fleet=SmallFleet, rules="", recovering=False, host="127.0.0.1", lease_s=LEASE_S
    ):
        self.directory = directory
        self.traces = directory / "traces"
        self.traces.mkdir(parents=True)
        environment = ENVIRONMENT | {failpoints.VARIABLE: rules, failpoints.TRACES_VARIABLE: str(self.traces)}
        self._parts = contextlib.ExitStack()
        self._log = self._parts.enter_context((directory / "log").open("ab"))
        first = environment | {failpoints.VARIABLE: ""} if recovering else environment
        with self._parts:
            self.server = Server(directory / "state", host, lease_s, environment, self._log, first)
            self._parts.callback(self.server.close)
            self.fleet = make_fleet(self.server.address, environment, self._log)
            self._parts.callback(self.fleet.close)
            self.client = self._parts.enter_context(lockstep.Client(self.server.address))
            self._parts = self._parts.pop_all()  # nothing has failed

    @property
    def log(self):
        """What all processes have said."""
        return (self.directory / "log").read_text(errors="replace")

    def was_hit(self, point):
        """Whether some process has acted at the point."""
        return (self.traces / point).exists()

    def submit(self, spec, data, validation, *errors):
        """Submit a job, again and again with the same request until the server says that it has it."""
        request = uuid.uuid4().hex
        return self.ask(lambda: self.client.submit(spec, data=data, validation=validation, request_id=request), *errors)

    def ask(self, call, *errors):
        """Ask again while the server is away (or answers with one of these errors)."""
        end_s = time.monotonic() + END_S
        while True:
            try:
                return call()
            except (ServerUnavailableError, *errors):
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._parts.close()
