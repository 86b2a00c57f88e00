"""What data cost: reading Parquet into shards against reading it alone, and taking a step's rows against the step."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.choices import at_least_1, rounds
from benchmarks.networks import CASES
from benchmarks.processes import end, launch, line_of
from benchmarks.table import Limit, Table

HELP = "loading Parquet into shards against pyarrow.dataset alone; taking a step's rows against the step"
DESCRIPTION = (
    "Writes Parquet files of noise, loads them as the fleet does, by Ray tasks, and reads them with pyarrow.dataset "
    "(all CPUs each); computes gradients from rows in their order and from permuted ones. Five rounds take two minutes."
)
QUICK = ("--rounds", "1", "--megabytes", "5", "--steps", "5")
NUM_FILES = 8
NUM_GROUPS = 4  # of rows, in a file
TWICE = Limit(2.0, of_ratio=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--megabytes", type=at_least_1, default=1000, help="of Parquet (default 1000)")
    parser.add_argument("--steps", type=at_least_1, default=100, help="whose gradients are computed")
    rounds(parser)


def measure(options: argparse.Namespace) -> list[Table]:
    """Measure and return the tables."""
    loading = Table(f"{options.megabytes} MB of Parquet", "s")
    alone = loading.add("pyarrow.dataset reads it")
    shards = loading.add("loaded into shards", TWICE)
    step = Table(f"{CASES['M']}: the gradient of half the batch", "ms")
    ordered = step.add("from rows as they lie")
    permuted = step.add("from permuted rows", Limit(1.05, of_ratio=True))
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmarks-") as directory:
        write_parquet(Path(directory) / "rows", options.megabytes)
        for _ in options.rounds:
            for row, module in ((alone, "benchmarks.roles.read_alone"), (shards, "benchmarks.roles.read_into_shards")):
                row.samples.append(_answer(module, directory)["seconds"])
            found = _answer("benchmarks.roles.take_rows", options.steps)
            ordered.samples.append(found["ordered_ms"])
            permuted.samples.append(found["permuted_ms"])
    return [loading, step]


def _answer(module: str, *arguments: object) -> dict[str, float]:
    process = launch(module, *arguments)
    found: dict[str, float] = json.loads(line_of(process))
    end(process)
    return found


def write_parquet(directory: Path, megabytes: int) -> None:
    """Write rows of noise for the middle network, in several files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    inputs, *_, classes = CASES["M"].sizes
    num_rows = max(megabytes * 1_000_000 // (4 * inputs) // (NUM_FILES * NUM_GROUPS), 1)
    directory.mkdir()
    random = np.random.default_rng(0)
    names = [f"f{i}" for i in range(inputs)]
    for number in range(NUM_FILES):
        path = directory / f"part-{number}.parquet"
        schema = pa.schema([*((name, pa.float32()) for name in names), ("label", pa.int64())])
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for _ in range(NUM_GROUPS):
                columns = list(random.standard_normal((inputs, num_rows), np.float32))
                labels = random.integers(0, classes, num_rows)
                writer.write_table(pa.table([*columns, labels], schema=schema))
