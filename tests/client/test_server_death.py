"""What a person sees of a server that is killed while a job trains, and started again."""

import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import lockstep
from tests.client.processes import until
from tests.client.samples import ENDLESS, SPEC, X, Y
from tests.client.servers import ServerProcess, command_process, free_port

pytestmark = pytest.mark.cluster

# Its only checkpoint is that of version 0, so that it goes back for certain.
WIDE = [{"units": 600, "activation": "relu"}, {"units": 600, "activation": "relu"}, SPEC["network"]["layers"][-1]]
TRAINING = ENDLESS | {"checkpoints": {"every_s": 3600.0}, "network": {"inputs": 4, "layers": WIDE}}
SEEN = 300  # steps, that take some seconds: a status tells that the job has gone back before it has caught up
WAIT_S = 200.0


class Cluster:
    """A cluster of one worker, whose server can be killed and started again on its port and state directory."""

    def __init__(self, local: lockstep.LocalCluster, state_dir: Path) -> None:
        self._local = local
        self._state_dir = state_dir

    def kill_server(self) -> None:
        server = self._local._processes[0]._process
        server.kill()
        server.wait()

    def start_server(self) -> ServerProcess:
        return ServerProcess(self._state_dir, int(self._local.address.rpartition(":")[2]))


@pytest.fixture
def local(tmp_path: Path) -> lockstep.LocalCluster:
    return lockstep.LocalCluster(workers=1, state_dir=tmp_path / "state", port=free_port())


def lines_until(running: subprocess.Popen[str], pattern: str) -> Iterator[str]:
    """The lines that a command prints, to the first that has the pattern."""
    assert running.stdout is not None
    for line in running.stdout:
        yield line.rstrip("\n")
        if re.search(pattern, line):
            return
    raise AssertionError(f"it ended without {pattern}")


def test_a_watch_shows_the_gap_and_how_far_the_job_went_back(local: lockstep.LocalCluster, tmp_path: Path) -> None:
    with local as client:
        cluster = Cluster(local, tmp_path / "state")
        job = client.submit(TRAINING, data=(X, Y))
        with command_process(client, "watch", job.id) as watch:
            list(lines_until(watch, r"step ([3-9]\d\d|\d{4,})/"))
            cluster.kill_server()
            away = list(lines_until(watch, "went away"))
            with cluster.start_server():
                said = list(lines_until(watch, "goes on from"))
                training = list(lines_until(watch, r"step \d+/.*rows/s"))
                client.stop(job.id)
                assert watch.wait(30) == 0
                said += training + watch.stdout.read().splitlines()
        where = f"the server at {client.address}"
        assert [line for line in [*away, *said] if "went away" in line] == [f"{where} went away; dialling again"]
        assert len([line for line in said if re.match(rf"{where} is back after \d+\.\d s(;|$)", line)]) == 1
        (back,) = [line for line in said if "goes on from" in line]
        step, reached = map(
            int, re.search(r"goes on from step (\d+) of 1000000000; it had reached (\d+)$", back).groups()
        )
        assert step < SEEN <= reached


def test_a_wait_tells_the_same(local: lockstep.LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with local as client:
        cluster = Cluster(local, tmp_path / "state")
        job = client.submit(TRAINING, data=(X, Y))
        waiting = threading.Thread(target=job.wait, kwargs={"timeout_s": WAIT_S})
        waiting.start()
        until(lambda: job.step >= SEEN)
        cluster.kill_server()
        until(lambda: "went away" in caplog.text)
        with cluster.start_server():
            until(lambda: "goes on from" in caplog.text)
            client.stop(job.id)
            waiting.join(WAIT_S)
        assert job.state == "stopped"
        where = f"the server at {client.address}"
        away, *back = caplog.messages
        assert away == f"{where} went away; dialling again"
        goes_on = r"the job goes on from step \d+ of 1000000000; it had reached \d+"
        assert re.fullmatch(rf"{where} is back after \d+\.\d s; {goes_on}", "; ".join(back))
