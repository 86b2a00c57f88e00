"""A compose cluster under faults: no job is stuck or fails, all end with the bits they have without faults.

Times are measured and reported, not asserted: the only deadlines here are those after which a job counts as stuck.
"""

import json
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lockstep
from tests.deploy import recovery
from tests.deploy.compose import ENDLESS, ROOT, Compose, cluster
from tests.deploy.faults import ACTIONS, Fault, schedule
from tests.deploy.load import Load, Look
from tests.deploy.recovery import Window

pytestmark = [pytest.mark.docker, pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.slow]

WORKERS = 3
STUCK_S = 120.0  # a cluster that is not whole so long after a fault counts as stuck
STEADY_S = 1.0  # it counts as whole when it has been so for this long

DIGITS = tomllib.loads((ROOT / "examples/digits.toml").read_text("utf-8"))
SPECS: dict[str, Any] = {
    "evaluating": DIGITS
    | {
        "name": "evaluating",
        "epochs": 400,
        "data": DIGITS["data"] | {"upload": str(ROOT / "examples/digits-train.csv")},
        "validation": DIGITS["validation"] | {"upload": str(ROOT / "examples/digits-test.csv")},
    },
    "wide": ENDLESS | {"name": "wide", "steps": 4000, "checkpoints": {"every_steps": 100}},
}


@pytest.fixture(scope="module")
def compose(request: pytest.FixtureRequest, image: None) -> Iterator[Compose]:
    with cluster(request, "ray-worker", workers=WORKERS) as up:
        yield up


@pytest.fixture(scope="module")
def client(compose: Compose) -> Iterator[lockstep.Client]:
    with lockstep.Client(compose.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def expected(client: lockstep.Client) -> dict[str, str]:
    """The digests of the jobs, undisturbed."""
    jobs = [client.submit(spec) for spec in SPECS.values()]
    return {job.name: job.wait(timeout_s=STUCK_S).digest for job in jobs}


def until_whole(load: Load, since_s: float) -> Look:
    """The first look at which all workers have been there, and all jobs have gone on, for a while."""
    deadline_s = since_s + STUCK_S
    look, steady_s = None, None
    now_s = since_s
    while found := load.next_look(now_s, deadline_s):
        look, now_s = found, found.time_s
        if not _is_whole(load, look, since_s if steady_s is None else steady_s):
            steady_s = None
        elif steady_s is None:
            steady_s = now_s
        elif now_s - steady_s >= STEADY_S:
            return look
    raise AssertionError(f"stuck: {_describe(look)}")


def _is_whole(load: Load, look: Look, since_s: float) -> bool:
    return (
        len(look.cluster.workers) == look.cluster.worker_slots == WORKERS
        and look.running != []
        and all(load.progress.newest_s(job.id) > since_s for job in look.running)
    )


def _describe(look: Look | None) -> str:
    if look is None:
        return "the server does not answer"
    jobs = [f"{job!r} {job.phase} {job.message}" for job in look.jobs if not job.state.ended]
    return f"{len(look.cluster.workers)} of {look.cluster.worker_slots} workers, {jobs}"


def play(compose: Compose, load: Load, fault: Fault) -> Window:
    """One fault, from a whole cluster to a whole cluster."""
    targets = fault.targets(compose)
    before = load.next_look(time.monotonic(), time.monotonic() + STUCK_S)
    assert before is not None
    began_s = time.monotonic()
    lifted_s = fault.play(compose, targets)
    after = until_whole(load, lifted_s)
    if fault.service == "server" and fault.action == "pause":
        assert dismissed(before, after) == set(), "a worker was thrown out for the server's own standing still"
    window = Window(fault.service, fault.action, began_s, lifted_s, after.time_s - STEADY_S, before.only_on(targets))
    waits = ", ".join(f"{one.step_s:.2f} s ({one.service})" for one in load.progress.recoveries(window))
    print(f"{fault}: next step after {waits or '-'}; whole after {window.whole_s - lifted_s:.2f} s", flush=True)
    return window


def dismissed(before: Look, after: Look) -> set[str]:
    """The workers that have gone, though their jobs have not ended, and were not shared out anew."""
    if {job.id for job in before.running} != {job.id for job in after.running}:
        return set()
    return {worker.worker_id for worker in before.cluster.workers} - {
        worker.worker_id for worker in after.cluster.workers
    }


def test_jobs_keep_their_bits_whatever_happens_to_the_containers(
    compose: Compose,
    expected: dict[str, str],
    request: pytest.FixtureRequest,
    record_property: Any,
) -> None:
    seed, rounds = request.config.getoption("chaos_seed"), request.config.getoption("chaos_rounds")
    with Load(compose.address, SPECS) as load:
        until_whole(load, time.monotonic())
        faults = [play(compose, load, fault) for fault in schedule(seed, rounds)]
        load.finish()
        _wait_for_the_end(load)
    jobs = load.jobs.values()
    assert {job.id: (job.state, job.message) for job in jobs if job.state != lockstep.JobState.SUCCEEDED} == {}
    assert {(job.name, job.digest) for job in jobs} == set(expected.items())
    found = [one for fault in faults for one in load.progress.recoveries(fault)]
    assert {one.action for one in found} == set(ACTIONS), "a fault that met no job shows nothing"
    rows = recovery.rows(found)
    about = {"seed": seed, "rounds": rounds, "jobs": len(jobs), "attempts": sum(job.attempt for job in jobs)}
    record_property(f"seconds from a fault to the next completed step {about}", recovery.as_table(rows))
    if report := request.config.getoption("chaos_report"):
        Path(report).write_text(json.dumps(recovery.as_json(rows, **about), indent=2) + "\n", "utf-8")


def test_a_worker_that_comes_back_after_twenty_seconds_is_refused_and_replaced(
    compose: Compose, client: lockstep.Client
) -> None:
    job = client.submit(ENDLESS)
    fault = Fault("ray-worker", "disconnect", hold_s=20.0)
    targets = fault.targets(compose)
    with Load(compose.address, specs={}) as watch:
        look = until_whole(watch, time.monotonic())
        zombies = {worker.worker_id for worker in look.cluster.workers if worker.host in targets}
        lifted_s = fault.play(compose, targets)
        until_whole(watch, lifted_s)
    assert zombies
    assert all(watch.workers_s[worker_id] < lifted_s for worker_id in zombies)
    job.stop()
    job.wait(timeout_s=STUCK_S)
    assert job.digest == client.submit(ENDLESS | {"steps": job.step}).wait(timeout_s=STUCK_S).digest


def _wait_for_the_end(load: Load) -> None:
    now_s = time.monotonic()
    deadline_s = now_s + STUCK_S
    while found := load.next_look(now_s, deadline_s):
        now_s = found.time_s
        if all(job.state.ended for job in found.jobs):
            return
    raise AssertionError(f"stuck at the end: {[repr(job) for job in load.jobs.values() if not job.state.ended]}")
