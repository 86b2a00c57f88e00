"""How long people wait before anything is trained, against Ray alone and against the imports of others."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lockstep
from benchmarks.choices import rounds
from benchmarks.networks import CASES
from benchmarks.processes import end, launch, line_of
from benchmarks.step import write_data
from benchmarks.table import Limit, Table

HELP = "seconds until a cluster is ready, a job makes its first step, a small job is finished; and of `import lockstep`"
DESCRIPTION = (
    "Starts a local cluster, runs a job to warm it up, and measures the next ones; starts Ray and an actor alone; "
    "and imports lockstep, numpy and grpc in new interpreters. Five rounds take about two minutes."
)
QUICK = ("--rounds", "1")
WORKERS = 2
POLL_S = 0.005
_SPEC = CASES["S"].spec(workers=WORKERS, shards=WORKERS, data="S.npz") | {"epochs": 3}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    rounds(parser)


def measure(options: argparse.Namespace) -> list[Table]:
    """Measure and return the table."""
    table = Table("Start", "s", note="Ratios are to the line above that is not Lockstep's.")
    imports = [
        others := table.add("import numpy, grpc"),
        table.add("import lockstep", Limit(0.25), others),
        table.add("import lockstep; lockstep.Client", baseline=others),
        table.add("from lockstep import *", baseline=others),
    ]
    ray_ready = table.add("Ray is ready")
    cluster_ready = table.add("LocalCluster is ready", Limit(5.0), ray_ready)
    actor = table.add("a Ray actor answers", baseline=ray_ready)
    first_step = table.add("submit to the first step, warm", Limit(0.7), actor)
    finished = table.add("job of 3 epochs submitted and finished, warm", Limit(1.5), actor)
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmarks-") as directory:
        write_data(CASES["S"], Path(directory))
        for _ in options.rounds:
            for row in imports:
                row.samples.append(_seconds_of(row.name, Path(directory) / "bytecode"))
            alone = _ray_alone()
            ray_ready.samples.append(alone["init_s"])
            actor.samples.append(alone["actor_s"])
            begun = time.perf_counter()
            with lockstep.LocalCluster(WORKERS, data_root=directory) as client:
                cluster_ready.samples.append(time.perf_counter() - begun)
                _first_step_s(client)
                first_step.samples.append(_first_step_s(client))
                finished.samples.append(_finished_s(client))
    return [table]


def _seconds_of(imports: str, bytecode: Path) -> float:
    """Return how long a new interpreter takes over them where modules are compiled already, as in an installation."""
    program = f"import time; begun = time.perf_counter(); {imports}; print(time.perf_counter() - begun)"
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(2):  # the first one compiles
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def _ray_alone() -> dict[str, float]:
    process = launch("benchmarks.roles.bare_ray")
    found: dict[str, float] = json.loads(line_of(process))
    end(process)
    return found


def _first_step_s(client: lockstep.Client) -> float:
    begun = time.perf_counter()
    job = client.submit(_SPEC)
    while job.step == 0 and not job.state.ended:
        time.sleep(POLL_S)
        job.refresh()
    took_s = time.perf_counter() - begun
    job.wait()
    return took_s


def _finished_s(client: lockstep.Client) -> float:
    begun = time.perf_counter()
    client.submit(_SPEC).wait()
    return time.perf_counter() - begun
