from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A shell that starts the tests in the background has Ctrl-C ignored, for children too; the tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")
from hypothesis import settings

settings.register_profile("fairsisa", deadline=None)  # a loaded machine is no error
settings.load_profile("fairsisa")


@pytest.fixture(scope="session")
def data_root() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("FAIRSISA_DATA", beside))
    if not root.is_dir():
        pytest.fail(f"Expected real data sets under FAIRSISA_DATA or {beside}, found neither.")
    return root
