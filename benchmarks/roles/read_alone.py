"""pyarrow.dataset reads a directory of Parquet. Run as a process; prints the seconds."""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Measure once."""
    import pyarrow.dataset as ds

    begun = time.perf_counter()
    table = ds.dataset(Path(sys.argv[1]) / "rows", format="parquet").to_table()
    print(json.dumps({"seconds": time.perf_counter() - begun, "num_rows": table.num_rows}), flush=True)


if __name__ == "__main__":
    main()
