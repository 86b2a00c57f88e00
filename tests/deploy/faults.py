"""What can happen to a container, as Docker does it, and the order in which a seed has it happen."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.deploy.compose import Compose, run

# The child of the container's init: killed from inside, so that the restart policy acts.
KILL_MAIN = "kill -KILL $(cat /proc/1/task/1/children)"
HOLDS_S = (0.5, 2.0, 4.0)  # below a worker's lease, about it, and beyond it


@dataclass(frozen=True)
class Fault:
    """One thing that happens to one container of a service. `pick` chooses among several."""

    service: str
    action: str
    pick: float = 0.0
    hold_s: float = 0.0

    def play(self, compose: Compose) -> float:
        """Do it, hold it, and lift it; return the time from which on nothing held the cluster back."""
        ids = compose.ids(self.service)
        return ACTIONS[self.action](compose, self.service, ids[int(self.pick * len(ids))], self.hold_s)

    def __str__(self) -> str:
        return f"{self.action} {self.service}" + (f" for {self.hold_s:g} s" if self.hold_s else "")


def kill(compose: Compose, service: str, container: str, hold_s: float) -> float:
    """SIGKILL to the main process; the container restarts."""
    killed_s = time.monotonic()
    run("docker", "exec", container, "bash", "-c", KILL_MAIN)
    return killed_s


def remove(compose: Compose, service: str, container: str, hold_s: float) -> float:
    """The container with all that is in it goes, and another one comes."""
    number = len(compose.ids(service))
    removed_s = time.monotonic()
    run("docker", "rm", "--force", container)
    compose("up", "--detach", "--no-recreate", "--no-deps", "--scale", f"{service}={number}", service)
    return removed_s


def pause(compose: Compose, service: str, container: str, hold_s: float) -> float:
    """All of its processes stand still."""
    run("docker", "pause", container)
    time.sleep(hold_s)
    lifted_s = time.monotonic()
    run("docker", "unpause", container)
    return lifted_s


def disconnect(compose: Compose, service: str, container: str, hold_s: float) -> float:
    """Its network is gone, its processes go on."""
    run("docker", "network", "disconnect", compose.network, container)
    time.sleep(hold_s)
    lifted_s = time.monotonic()
    run("docker", "network", "connect", "--alias", service, compose.network, container)
    return lifted_s


ACTIONS: dict[str, Callable[[Compose, str, str, float], float]] = {
    "kill": kill,
    "remove": remove,
    "pause": pause,
    "disconnect": disconnect,
}
KINDS = [
    *(("ray-worker", action) for action in ("kill", "remove", "pause", "disconnect")),
    *(("server", action) for action in ("kill", "pause", "disconnect")),
    *(("ray-head", action) for action in ("kill", "pause", "disconnect")),
]


def schedule(seed: int, rounds: int) -> Iterator[Fault]:
    """Every kind of fault once a round, in an order, on containers and with holds that the seed draws."""
    draw = random.Random(seed)
    for _ in range(rounds):
        for service, action in draw.sample(KINDS, len(KINDS)):
            held = action in ("pause", "disconnect")
            yield Fault(service, action, draw.random(), draw.choice(HOLDS_S) if held else 0.0)
