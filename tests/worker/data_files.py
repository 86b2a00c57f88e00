"""Writers of the same table in every format, and jobs to read them with."""

import csv
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from lockstep_proto.spec import read_spec
from lockstep_worker.describe import describe
from lockstep_worker.errors import DataError

COLUMNS = ("a", "b", "c", "label", "w")


@contextmanager
def unprivileged():
    """As a user whom the permissions of files bind, unlike root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def public_folder():
    """A folder that every user may read, unlike those of pytest."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def table(num_rows, seed=0):
    """Three features, a class label of 0..2 and a weight, in float64."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(num_rows, 3))
    return np.column_stack([x, random.integers(0, 3, num_rows), random.integers(0, 3, num_rows)])


def csv_file(folder, text, name="data.csv"):
    path = folder / name
    path.write_text(text)
    return path


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([[repr(float(v)) for v in row] for row in rows])


def write_parquet(path, rows):
    pa.parquet.write_table(arrow_table(rows), path, row_group_size=7)


def write_arrow(path, rows):
    whole = arrow_table(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=5)


def write_feather(path, rows):
    pa.feather.write_feather(arrow_table(rows), str(path), compression="lz4", chunksize=6)


def write_npy(path, rows):
    np.save(path, rows)


def write_npy_by_columns(path, rows):
    np.save(path, np.asfortranarray(rows))


def write_npz(path, rows):
    np.savez(path, x=rows[:, :3], y=rows[:, 3].astype(np.int32), w=rows[:, 4], other=np.zeros((2, 2)))


def write_npz_compressed_by_columns(path, rows):
    np.savez_compressed(path, x=np.asfortranarray(rows[:, :3]), y=rows[:, 3], w=rows[:, 4])


WRITERS = {
    "csv": (".csv", write_csv),
    "parquet": (".parquet", write_parquet),
    "arrow": (".arrow", write_arrow),
    "feather": (".feather", write_feather),
    "npy": (".npy", write_npy),
    "npy by columns": (".npy", write_npy_by_columns),
    "npz": (".npz", write_npz),
    "npz compressed": (".npz", write_npz_compressed_by_columns),
}


def arrow_table(rows):
    columns = dict(zip(COLUMNS, rows.T, strict=True))
    columns["label"] = columns["label"].astype(np.int64)
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def names_in(suffix, *, weighted=True):
    """The part of a Data message that names the columns of a file with that suffix."""
    if suffix == ".npz":
        return {"weight": "w"} if weighted else {}
    names = ("3", "4", ["0", "1", "2"]) if suffix == ".npy" else ("label", "w", ["a", "b", "c"])
    target, weight, features = names
    return {"target": target, "features": features} | ({"weight": weight} if weighted else {})


def job(data, *, inputs=3, outputs=3, shards=4, dtype="float64", **fields):
    last = {"units": outputs, "activation": "softmax"} if outputs > 1 else {"units": 1}
    return read_spec(
        {
            "name": "test",
            "network": {"inputs": inputs, "layers": [last]},
            "loss": "cross_entropy" if outputs > 1 else "squared_error",
            "batch_size": "full",
            "epochs": 1,
            "shards": shards,
            "dtype": dtype,
            "data": data,
        }
        | fields
    )


def dataset(path, data, *, training=True, **fields):
    """Describe one or more files."""
    paths = path if isinstance(path, list) else [path]
    spec = job({"path": paths[0].name} | data, **fields)
    return describe(spec.data, spec, [(path, path.name) for path in paths], training=training)


def shards(path, data, **fields):
    described = dataset(path, data, **fields)
    return list(described.shards(0, described.num_shards))


def refusal(path, data, **fields):
    """The text of the DataError that reading these files ends with."""
    try:
        shards(path, data, **fields)
    except DataError as error:
        return str(error)
    raise AssertionError("the data were taken")
