from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "soak.py"
KILLS = 6
SPOILED = """
import runpy, sys
sys.path.append(str({folder!r}))
sys.argv = ["soak.py", "--kills", "0"]
from fairsisa.tables import Examples
keep = Examples.keep
def keep_one_more(self, mask):
    mask[(~mask).argmax()] = True
    return keep(self, mask)
Examples.keep = keep_one_more
runpy.run_path({script!r}, run_name="__main__")
"""


def soaked(*words: str) -> tuple[int, dict[str, int], str]:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=900)
    rows = re.findall(r"^\s*(.*?\S) {2,}([\d,]+)\s*$", done.stdout, flags=re.MULTILINE)
    return done.returncode, {name: int(count.replace(",", "")) for name, count in rows}, done.stdout + done.stderr


@pytest.mark.slow
def test_a_short_soak_ends_with_equal_digests():
    code, counts, said = soaked(str(SCRIPT), "--kills", str(KILLS), "--seed", "3")
    assert code == 0, said
    assert counts["kills that hit"] == KILLS
    assert counts["at a random time"] + counts["at a write boundary"] == KILLS
    assert sum(count for name, count in counts.items() if name.startswith("last state")) == KILLS
    assert counts["requests attested"] == counts["requests"] > 0
    assert counts["comparisons equal"] == counts["operations"] > 0
    assert counts["comparisons unequal"] == 0
    assert counts["commands"] > KILLS


@pytest.mark.slow
def test_a_soak_whose_oracle_keeps_one_example_too_many_fails():
    code, counts, said = soaked("-c", SPOILED.format(folder=str(SCRIPT.parent), script=str(SCRIPT)))
    assert code == 1, said
    assert counts["comparisons unequal"] > 0
    assert "another table of examples" in said
