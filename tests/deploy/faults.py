"""What can happen to a container, as Docker does it, and the order in which a seed has it happen."""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.deploy.compose import Compose, run

# The child of the container's init: killed from inside, so that the restart policy acts.
KILL_MAIN = "kill -KILL $(cat /proc/1/task/1/children)"
RESTART_S = 30.0  # for Docker to start a container again
HOLDS_S = {  # below a worker's lease, about it, and beyond it; a server may stand still for longer
    "ray-worker": (0.5, 2.0, 4.0),
    "server": (0.5, 4.0, 10.0),
    "ray-head": (0.5, 2.0, 4.0),
}


@dataclass(frozen=True)
class Fault:
    """One thing that happens to one container of a service. `pick` chooses among several."""

    service: str
    action: str
    pick: float = 0.0
    hold_s: float = 0.0

    def targets(self, compose: Compose) -> list[str]:
        """The containers that it will happen to."""
        ids = compose.ids(self.service)
        return ids if self.action == REMOVE_ALL else [ids[int(self.pick * len(ids))]]

    def play(self, compose: Compose, containers: list[str]) -> float:
        """Do it, hold it, and lift it; return the time from which on nothing held the cluster back."""
        return ACTIONS[self.action](compose, self.service, containers, self.hold_s)

    def __str__(self) -> str:
        return f"{self.action} {self.service}" + (f" for {self.hold_s:g} s" if self.hold_s else "")


def kill(compose: Compose, service: str, containers: list[str], hold_s: float) -> float:
    """SIGKILL to the main process; the container restarts."""
    started, killed_s = started_at(containers), time.monotonic()
    for container in containers:  # the command may die with it
        subprocess.run(["docker", "exec", container, "bash", "-c", KILL_MAIN], check=False, timeout=30.0)
    while started_at(containers) == started:
        assert time.monotonic() < killed_s + RESTART_S, f"{service} was not restarted"
        time.sleep(0.1)
    return killed_s


def started_at(containers: list[str]) -> str:
    """When containers were started last."""
    return run("docker", "inspect", "--format", "{{.State.StartedAt}}", *containers)


def remove(compose: Compose, service: str, containers: list[str], hold_s: float) -> float:
    """The containers with all that is in them go, and others come, which load shards again that were lost."""
    number, removed_s = len(compose.ids(service)), time.monotonic()
    run("docker", "rm", "--force", *containers)
    compose("up", "--detach", "--no-recreate", "--no-deps", "--scale", f"{service}={number}", service)
    return removed_s


def pause(compose: Compose, service: str, containers: list[str], hold_s: float) -> float:
    """All of their processes stand still."""
    run("docker", "pause", *containers)
    time.sleep(hold_s)
    lifted_s = time.monotonic()
    run("docker", "unpause", *containers)
    return lifted_s


def disconnect(compose: Compose, service: str, containers: list[str], hold_s: float) -> float:
    """Their network is gone, their processes go on."""
    for container in containers:
        run("docker", "network", "disconnect", compose.network, container)
    time.sleep(hold_s)
    lifted_s = time.monotonic()
    for container in containers:
        run("docker", "network", "connect", "--alias", service, compose.network, container)
    return lifted_s


REMOVE_ALL = "remove all"
ACTIONS: dict[str, Callable[[Compose, str, list[str], float], float]] = {
    "kill": kill,
    "remove": remove,
    REMOVE_ALL: remove,
    "pause": pause,
    "disconnect": disconnect,
}
KINDS = [
    *(("ray-worker", action) for action in ("kill", "remove", REMOVE_ALL, "pause", "disconnect")),
    *(("server", action) for action in ("kill", "remove", "pause", "disconnect")),
    *(("ray-head", action) for action in ("kill", "remove", "pause", "disconnect")),
]


def schedule(seed: int, rounds: int) -> Iterator[Fault]:
    """Every kind of fault once a round, in an order, on containers and with holds that the seed draws."""
    draw = random.Random(seed)
    for _ in range(rounds):
        for service, action in draw.sample(KINDS, len(KINDS)):
            held = action in ("pause", "disconnect")
            yield Fault(service, action, draw.random(), draw.choice(HOLDS_S[service]) if held else 0.0)
