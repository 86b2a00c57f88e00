"""The product's fleet as a process, on a Ray cluster that outlives it; `python -m tests.faults.ray_fleet` is that one.

A Ray cluster takes seconds to start, a fleet that joins one a part of a second.
"""

import functools
import os
import subprocess
import sys

from lockstep_worker.fleet_main import ENVIRONMENT
from tests.faults.restarted import Restarted

CPUS = 2


class RayFleet(Restarted):
    """`lockstep-fleet`; `ray_address` "local" gives it a cluster of its own, which ends with it."""

    def __init__(self, server, environment, log, *, ray_address):
        arguments = ["--server", server, "--ray-address", ray_address, "--grace-s", "2"]
        if ray_address == "local":
            arguments += ["--num-cpus", str(CPUS)]
        super().__init__("lockstep_worker.fleet_main", arguments, environment, log)


class RayCluster:
    """One machine of Ray, as a process that ends with this one; `fleet` makes a fleet that joins it."""

    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ray_fleet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | ENVIRONMENT,
        )
        address = self._process.stdout.readline().decode().strip()
        self.fleet = functools.partial(RayFleet, ray_address=address)

    def close(self):
        self._process.communicate(timeout=60)


def main():
    import ray

    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    print(ray.get_runtime_context().gcs_address, flush=True)
    while os.read(0, 4096):
        pass
    ray.shutdown()


if __name__ == "__main__":
    main()
