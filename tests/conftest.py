from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("FAIRSISA_DATA", beside))
    if root.is_dir():
        return root
    missing = f"Expected real data sets under FAIRSISA_DATA or {beside}, found neither."
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
