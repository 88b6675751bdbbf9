"""Measure how long planning takes, and how much memory: many requests on a large partition.

`python scripts/bench_planning.py --examples 10000000 --requests 10000` writes a partition to a temporary folder (not
timed), plans in a fresh process, and prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARDS, SLICES = 20, 10
ROWS_AT_ONCE = 1_000_000
PLAN = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from fairsisa.sisa.cost import plan_requests
requests = [[line] for line in Path(sys.argv[2]).read_text().split()]
kept = np.ones((int(sys.argv[3]), int(sys.argv[4])), dtype=bool)
start = time.perf_counter()
plan = plan_requests(Path(sys.argv[1]), requests, epochs=(6 / (kept.shape[1] + 1),) * kept.shape[1], kept=kept)
seconds = time.perf_counter() - start
print(json.dumps({
    "seconds": seconds,
    "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "batch": plan.batch_presentations,
    "alone": int(plan.request_presentations.sum()),
    "removed": int(plan.removed.sum()),
}))
"""


def write_partition(path: Path, num_examples: int, rng: np.random.Generator) -> None:
    schema = pa.schema([("example_id", pa.string()), ("shard", pa.int64()), ("slice", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_examples, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, num_examples - start)
            ids = [f"example-{i:012d}" for i in range(start, start + count)]
            columns = [pa.array(ids), *(pa.array(rng.integers(n, size=count)) for n in (SHARDS, SLICES))]
            writer.write_table(pa.table(columns, schema=schema))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000_000)
    parser.add_argument("--requests", type=int, default=10_000)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        table, ids = Path(folder, "partition.parquet"), Path(folder, "ids.txt")
        write_partition(table, asked.examples, rng)
        chosen = rng.choice(asked.examples, size=asked.requests, replace=False)
        ids.write_text("\n".join(f"example-{i:012d}" for i in chosen))
        command = [sys.executable, "-c", PLAN, str(table), str(ids), str(SHARDS), str(SLICES)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if found["removed"] != asked.requests:
        raise SystemExit(f"Expected {asked.requests} examples to be found, got {found['removed']}.")
    print("| examples | requests | seconds | peak memory, MiB | one by one / together, example-epochs |")
    print("|---|---|---|---|---|")
    print(
        f"| {asked.examples:,} | {asked.requests:,} | {found['seconds']:.2f} | {found['mib']:.0f} "
        f"| {found['alone']:,} / {found['batch']:,} |"
    )


if __name__ == "__main__":
    main()
