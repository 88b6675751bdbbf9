from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pytorch_lightning", "lightning")
OF_SISA = (
    "budget",
    "certificate",
    "condition",
    "cost",
    "formulas",
    "keys",
    "ledger",
    "ledger_check",
    "ledger_events",
    "ledger_file",
    "ledger_requests",
    "membership",
    "merkle",
    "once",
    "partition",
    "retention",
    "simulation",
)
TARGETS = ("errors", "tables", "lineage", "fairness", "data.corpora", *(f"sisa.{name}" for name in OF_SISA))
PROBE = """
import importlib, json, pkgutil, sys
module = importlib.import_module(sys.argv[1])
names = [module.__name__]
for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
    importlib.import_module(found.name)
    names.append(found.name)
print(json.dumps({"imported": names, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def probe(target: str) -> dict[str, list[str]]:
    command = [sys.executable, "-c", PROBE, f"fairsisa.{target}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("target", [name for name in TARGETS if importlib.util.find_spec(f"fairsisa.{name}")])
def test_import_needs_no_deep_learning(target):
    found = probe(target)
    assert f"fairsisa.{target}" in found["imported"]
    assert [name for name in HEAVY if name in found["loaded"]] == []


def test_every_module_of_a_package_is_probed():
    assert {"fairsisa.fairness", "fairsisa.fairness.rates"} <= set(probe("fairness")["imported"])


def test_probe_sees_a_module_that_does_need_it():
    assert "torch" in probe("store")["loaded"]
