from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chains import LOGISTIC, QUICK, TINY_TEXT, assembled, digests_of, run_of, trained
from fairsisa.settings import ModelSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
ON_GPU = replace(QUICK, accelerator="cuda", precision="bf16")


@pytest.mark.parametrize("model", [LOGISTIC, TINY_TEXT, replace(TINY_TEXT, trains="head")], ids=str)
@pytest.mark.parametrize("state", ["fresh", "carried"])
def test_training_twice_gives_equal_digests(model: ModelSettings, state: str, tmp_path: Path) -> None:
    settings = run_of(model, replace(ON_GPU, optimizer_state=state))
    for name in ("first", "second"):
        trained(assembled(settings, tmp_path / name))
    assert digests_of(tmp_path / "first") == digests_of(tmp_path / "second")
