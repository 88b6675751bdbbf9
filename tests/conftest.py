from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# A shell that starts the tests in the background has Ctrl-C ignored, for children too; the tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A loaded machine is no error; in CI the same examples come every time.
settings.register_profile("fairsisa", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("fairsisa")


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


LONG = (
    *("unlearning_golden", "unlearning_faults", "unlearning_processes", "unlearning_damage", "unlearning_descendants"),
    *("unlearning_postprocess", "unlearning_defects", "training_kill", "end_to_end", "wheel", "soak", "runs_bias"),
    *("execution_ray", "execution_submitit", "runs_compressing", "study_language_models", "bench_unlearning"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests come first: the last two tests of a worker cannot be taken over by one that has no more."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)
