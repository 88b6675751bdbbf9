from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fairsisa

CHECKOUT = Path(fairsisa.__file__).resolve().parents[1]
QUICKSTART = """
import json, sys
from fairsisa.cli import main
sys.argv = ["fairsisa", "train", "experiment=quickstart", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "fairsisa"]
    files = [module.__file__ for module in ours]
    print(json.dumps({"code": error.code, "files": files}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(CHECKOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run_installed(installed: Path, folder: Path, words: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_what_the_checkout_has(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    modules = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "fairsisa").rglob("*.py")}
    templates = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "fairsisa").rglob("*.j2")}
    configs = {str(Path("fairsisa") / path.relative_to(CHECKOUT)) for path in (CHECKOUT / "conf").rglob("*.yaml")}
    assert len(templates) >= 3
    assert len(configs) >= 25
    assert modules | templates | configs | {"fairsisa/py.typed"} <= names
    others = {name for name in names if not name.startswith("fairsisa/")}
    assert all(name.startswith(f"fairsisa-{fairsisa.__version__}.dist-info/") for name in others)
    assert not [name for name in names if "__pycache__" in name or "test" in Path(name).name.split("_")]
    assert any(name.endswith("licenses/LICENSE") for name in others)


def test_the_command_is_installed(installed, tmp_path):
    said = run_installed(installed, tmp_path, [str(installed / "bin" / "fairsisa"), "--version"])
    assert said.split() == ["fairsisa", fairsisa.__version__]


def test_the_quickstart_runs_without_the_checkout(installed, tmp_path):
    small = ["data.options.num_examples=120", "evaluation.num_replicates=100", "execution.num_workers=1"]
    words = ["-c", QUICKSTART, *small, "partition.num_shards=2", "partition.num_slices=2", "run=run"]
    said = run_installed(installed, tmp_path, words)
    found = json.loads(said.splitlines()[-1])
    assert found["code"] in (0, None)
    assert len(found["files"]) > 40
    assert all(Path(path).is_relative_to(installed) for path in found["files"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert not (tmp_path / "outputs").exists()
