"""Every speed of bias evaluation that docs/performance.md tells: each against a named peer, in processor seconds.

Runs bench_bias_masked.py (CrowS-Pairs and StereoSet by masked models, against one item at a time as bias-bench asks),
bench_bias_causal.py (against lm-evaluation-harness at its best batch size, if it is installed; shared prefixes;
divergence over the vocabulary) and bench_bias_vectors.py (SEAT). Each takes options of its own; see its --help.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

PARTS = {
    "masked": ("bench_bias_masked.py", ("--items", "250")),
    "causal": ("bench_bias_causal.py", ()),
    "vectors": ("bench_bias_vectors.py", ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", default=[*PARTS], metavar="part", help=f"{', '.join(PARTS)}; all unless named"
    )
    for part in parser.parse_args().parts:
        script, options = PARTS[part]
        print(f"\n# {part}: {script} {' '.join(options)}\n", flush=True)
        # A process each: what one has loaded, or how it set threads, is nothing to another.
        command = [sys.executable, str(Path(__file__).with_name(script)), *options]
        subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


if __name__ == "__main__":
    main()
