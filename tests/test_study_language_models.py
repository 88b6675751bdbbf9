from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fairsisa.compression.folders import load_compressed
from fairsisa.data.texts import Text, find_text
from fairsisa.models.language import load_language_model

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "study_language_models.py"
spec = importlib.util.spec_from_file_location("study_language_models", SCRIPT)
assert spec is not None
assert spec.loader is not None
script: Any = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = script  # dataclasses look their module up
spec.loader.exec_module(script)

NAMES = ("tinystories_train", "wikitext2_validation", "tinystories_held_out", "wikitext2_test")
FEW = {"half the layers": [{"method": "drop_layers"}], "wanda 50 %": ["wanda"], "2 bits": ["round_to_nearest_2"]}
TINY = replace(script.QUICK, num_steps=6, num_checkpoints=2, num_distilling=3, vocab_size=270)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study of made-up texts, without the Llama."""
    sentences = [f"the {animal} sat on the {thing}." for animal in ("cat", "dog", "ox") for thing in ("mat", "log")]
    for name in NAMES:
        path = tmp_path / "data" / f"{name}.txt.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress("<|endoftext|>".join(sentences * 10).encode()))

    def found(name: str, *, root: Path | None = None, cache: Path) -> Text:
        return find_text(str(tmp_path / "data" / f"{name}.txt.gz") if name in NAMES else name, cache=cache)

    monkeypatch.setattr(script, "find_text", found)
    monkeypatch.setattr(script, "SCHEMES", FEW)
    monkeypatch.setattr(script, "stories", lambda study: iter(["the Llama"]))
    return script.Study(tmp_path / "root", tmp_path / "data", TINY)


def test_the_checkpoints_are_ten_and_end_with_training():
    assert len(script.Sizes().steps) == 10
    assert script.Sizes().steps[-1] == 600
    assert list(script.Sizes().steps) == sorted(script.Sizes().steps)


def test_everything_is_made_and_measured_once(study, capsys):
    report = script.run(study, workers=1)
    steps = set(TINY.steps)
    assert len(steps) == 2
    families = {"dense", "distilled", *FEW}
    assert {(row.family, row.step) for row in report.table.itertuples()} == {(f, s) for f in families for s in steps}
    assert report.corpora == ["tinystories_held_out_first_6", "wikitext2_test_first_1"]
    assert (report.models[0], len(report.table)) == ("dense/step-000006", 2 * len(families) * len(steps))
    assert not report.table["perplexity"].isna().any()
    assert report.table["difference"].isna().sum() == 2
    told = capsys.readouterr().out
    assert "| step | dense | distilled | half the layers | wanda 50 % | 2 bits |" in told
    assert "- `int8_dynamic` of a GPT-2: " in told
    assert "Conv1D" in told
    assert "accepted" not in told
    assert "the Llama" in (study.root / "study.md").read_text()
    assert json.loads((study.root / "study.json").read_text())["rows"][0]["model"] == "dense/step-000006"
    assert len(pd.read_csv(study.root / "study.csv")) == len(report.table)
    check_models(study)
    files = {path: path.stat().st_mtime_ns for path in study.root.rglob("*.safetensors")}
    again = script.run(study, workers=1)
    assert files == {path: path.stat().st_mtime_ns for path in study.root.rglob("*.safetensors")}
    assert again.table["loss"].tolist() == report.table["loss"].tolist()


def check_models(study: Any) -> None:
    """Hold what was made against what it is called."""
    halved: Any = load_language_model(study.root / "distilled" / "step-000006")
    assert len(halved.transformer.h) == 1
    card = load_compressed(study.root / "wanda 50 %" / "step-000006").card
    assert abs(card.sparsity - 0.5) < 0.02
    assert card.num_calibration_texts == study.sizes.num_calibrating
    rounded: Any = load_language_model(study.root / "2 bits" / "step-000006")
    row = rounded.transformer.h[0].mlp.c_fc.weight.T[0, :32]
    assert len(row.unique()) <= 4


@pytest.mark.real_data
@pytest.mark.slow
def test_stories260k_still_tells_stories_when_smaller(tmp_path, data_root):
    study = script.Study(tmp_path, data_root, replace(script.QUICK, num_told=20))
    lines = list(script.stories(study))
    openings = dict(line.removeprefix("- ").split(": ", 1) for line in lines if line.startswith("- "))
    assert [*openings] == ["as published", *script.STORIES]
    for name in ("as published", "int8_dynamic", "torchao int8", "4 bits"):
        assert openings[name].startswith("Once upon a time, there was a little girl named Lily")
    table = pd.read_csv(tmp_path / "stories260K.csv")
    assert 4 < table["perplexity"].iloc[0] < 5
    assert (table["difference"].iloc[1:] > 0).all()
