from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bias_models import tiny_bert, tiny_gpt2
from chains import LOGISTIC, QUICK, TINY_TEXT, assembled, digests_of, run_of, trained
from fairsisa.bias.capability import shuffled_items
from fairsisa.bias.readouts.causal import ask_sentences
from fairsisa.bias.readouts.masked import ask_pseudo_likelihood
from fairsisa.settings import ModelSettings, ScoringSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
ON_GPU = replace(QUICK, accelerator="cuda", precision="bf16")


@pytest.mark.parametrize("model", [LOGISTIC, TINY_TEXT, replace(TINY_TEXT, trains="head")], ids=str)
@pytest.mark.parametrize("state", ["fresh", "carried"])
def test_training_twice_gives_equal_digests(model: ModelSettings, state: str, tmp_path: Path) -> None:
    settings = run_of(model, replace(ON_GPU, optimizer_state=state))
    for name in ("first", "second"):
        trained(assembled(settings, tmp_path / name))
    assert digests_of(tmp_path / "first") == digests_of(tmp_path / "second")


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_scores_of_sentences_on_the_gpu_are_those_of_the_processor(kind: str, data_root: Path) -> None:
    here = (tiny_bert if kind == "masked" else tiny_gpt2)(data_root)
    there = replace(here, network=copy.deepcopy(here.network).cuda())
    items = shuffled_items()
    ask = ask_pseudo_likelihood if kind == "masked" else ask_sentences
    values = [ask(each, items, ScoringSettings(), {}).frame["value"].to_numpy() for each in (here, there)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4)
