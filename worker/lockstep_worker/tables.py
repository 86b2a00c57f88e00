"""CSV, Parquet and Arrow files: their columns, and batches of their rows as numbers."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from lockstep_worker.columns import Batch, Contents, is_number, not_a_number, numbers
from lockstep_worker.errors import UNAVAILABLE, DataError

BATCH_ROWS = 65536  # of Parquet: enough for all cores, small against a shard
CSV_BLOCK_BYTES = 4 * 1024 * 1024  # no row may be longer
SEPARATORS = ";\t|"  # other than the comma


class Csv:
    """Comma-separated values in UTF-8, with a header. Empty lines count for nothing."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return the columns; the rows are not known before they are read."""
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            names = next(_rows(file, label), None)
        if names is None:
            raise DataError(f"{label}: is empty: it has no header")
        if any("\udc80" <= char <= "\udcff" for name in names for char in name):
            raise DataError(f"{label}: is not in UTF-8; save it in that encoding", UNAVAILABLE)
        other = next((char for char in SEPARATORS if char in names[0]), None)
        if len(names) == 1 and other is not None:
            raise DataError(f"{label}: its columns are separated by {other!r}; they must be by commas")
        numbered = all(is_number(name) for name in names)
        hint = "the first line of a CSV file must name its columns" if numbered else ""
        return Contents(tuple(names), None, num_parts=1, hint=hint)

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows from the first to the last: there is no way into the middle of a CSV file."""
        import pyarrow
        import pyarrow.csv

        first = 0
        options = pyarrow.csv.ConvertOptions(
            include_columns=list(names), column_types={name: pyarrow.float64() for name in names}, null_values=[]
        )
        try:
            with pyarrow.csv.open_csv(
                path,
                pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
                pyarrow.csv.ParseOptions(newlines_in_values=True),
                options,
            ) as reader:
                for batch in reader:
                    yield _batch(batch, label, names, first)
                    first += batch.num_rows
        except pyarrow.ArrowInvalid:
            if not self._explain(path, label, names):  # Arrow does not say in which row
                raise

    @staticmethod
    def _explain(path: Path, label: str, names: Sequence[str]) -> bool:
        """Raise DataError for the first row that cannot be read; True if there is no row at all."""
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = _rows(file, label)
            header = next(rows)
            wanted = [(header.index(name), name) for name in names]
            i = -1
            for i, row in enumerate(rows):
                if len(row) != len(header):
                    counts = f"has {len(row)} values, the header {len(header)}"
                    raise DataError(f"{label}: data row {i + 1} (the first is 1) {counts}")
                for index, name in wanted:
                    if not is_number(row[index]):
                        raise not_a_number(label, name, i, row[index])
        return i < 0


class Parquet:
    """Its row groups are read by themselves."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return the columns and the number of rows, from the file's footer."""
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            # a part may begin in the middle of a row group, which is then decoded twice
            parts = max(1, file.num_row_groups // 2)
            return Contents(tuple(file.schema_arrow.names), file.metadata.num_rows, parts)

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi), decoding the row groups they lie in."""
        import pyarrow.parquet

        assert hi is not None
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            groups, first = _overlapping(counts, lo, hi)
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(names)):
                yield from _cut(batch, label, names, first, lo, hi)
                first += batch.num_rows


class Arrow:
    """An Arrow IPC file, also called feather. Its record batches are read by themselves."""

    def describe(self, path: Path, label: str) -> Contents:
        """Return the columns and the number of rows."""
        import pyarrow

        with pyarrow.memory_map(str(path)) as source:
            names = tuple(pyarrow.ipc.open_file(source).schema.names)
            options = pyarrow.ipc.IpcReadOptions(included_fields=[0] if names else [])
            reader = pyarrow.ipc.open_file(source, options=options)
            num_rows = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
            return Contents(names, num_rows, max(1, reader.num_record_batches // 2))

    def batches(self, path: Path, label: str, names: Sequence[str], lo: int, hi: int | None) -> Iterator[Batch]:
        """Yield the rows [lo, hi), reading the record batches they lie in."""
        import pyarrow

        assert hi is not None
        first = 0
        with pyarrow.memory_map(str(path)) as source:
            schema = pyarrow.ipc.open_file(source).schema
            fields = sorted(schema.get_field_index(name) for name in names)
            options = pyarrow.ipc.IpcReadOptions(included_fields=fields)
            reader = pyarrow.ipc.open_file(source, options=options)
            for i in range(reader.num_record_batches):
                if first >= hi:
                    break
                batch = reader.get_batch(i)
                yield from _cut(batch, label, names, first, lo, hi)
                first += batch.num_rows


def _overlapping(counts: Sequence[int], lo: int, hi: int) -> tuple[list[int], int]:
    """Return which blocks of rows [lo, hi) lies in, and the first row of the first of them."""
    blocks: list[int] = []
    first = start = 0
    for i, count in enumerate(counts):
        if start < hi and lo < start + count:
            first = first if blocks else start
            blocks.append(i)
        start += count
    return blocks, first


def _cut(batch: Any, label: str, names: Sequence[str], first: int, lo: int, hi: int) -> Iterator[Batch]:
    start, stop = max(lo - first, 0), min(hi - first, batch.num_rows)
    if start < stop:
        yield _batch(batch.slice(start, stop - start), label, names, first + start)


def _batch(batch: Any, label: str, names: Sequence[str], first_row: int) -> Batch:
    columns = {name: numbers(batch.column(name), label, name, first_row) for name in names}
    return Batch(label, first_row, batch.num_rows, columns)


def _rows(file: TextIO, label: str) -> Iterator[list[str]]:
    """Yield the header and the rows of a CSV file, without empty lines."""
    csv.field_size_limit(CSV_BLOCK_BYTES)
    num_rows = 0
    try:
        for row in csv.reader(file):
            if row:
                yield row
                num_rows += 1
    except csv.Error as error:
        where = f"data row {num_rows} (the first is 1)" if num_rows else "the header"
        raise DataError(f"{label}: {where} cannot be read: {error}; is a quotation mark not closed?") from error
