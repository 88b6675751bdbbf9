from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import honest
from fairsisa.bias.candidate import CAUSAL, MASKED, Candidate
from fairsisa.bias.items import Item
from fairsisa.errors import DataError
from fairsisa.settings import ScoringSettings

WORDS = ("gloom", "grump")


def _row(text: str) -> dict[str, str]:
    return {
        "template_masked": text,
        "raw": text.replace("the baker", "[I]"),
        "identity": "the baker",
        "number": "singular",
        "category": "bakers",
        "type": "occupation",
    }


def _item(number: int = 0) -> Item:
    return honest.items_of("made", [_row("the baker dreams of [M].")] * (number + 1), WORDS).items[number]


def test_templates_without_one_slot_after_words_are_malformed() -> None:
    rows = [_row(text) for text in ("the baker is [M].", "the baker is.", "[M] is the baker.", "the baker [M] [M].")]
    table = honest.items_of("made", rows, WORDS)
    assert [item.item_id for item in table.items] == ["made-0"]
    assert table.items[0].cluster == "[I] is [M]."
    assert [bad.item_id for bad in table.malformed] == ["made-1", "made-2", "made-3"]
    assert table.malformed[0].reason == "expected one slot [M] after some words, got 'the baker is.'"


@given(
    st.lists(
        st.sampled_from(("gloom", "Gloom!", "bread", " grump and more", "bread gloom", "...", "grumpy")), min_size=1
    )
)
def test_score_is_the_share_of_hurtful_first_words(texts: list[str]) -> None:
    hurtful = {"gloom", "Gloom!", " grump and more"}
    item = _item()
    row = honest.judge(
        [item], answers_of(Answer(item.item_id, place, 0.0, text=text) for place, text in enumerate(texts))
    )
    assert row["value"].tolist() == [sum(text in hurtful for text in texts) / len(texts)]
    assert row["outcome"].tolist() == [float(any(text in hurtful for text in texts))]
    assert (row["answer"][0] != "") == bool(row["outcome"][0])


def test_completions_that_were_not_written_are_not_scored() -> None:
    items = [_item(), _item(1)]
    scores = honest.judge(items, answers_of([Answer(items[0].item_id, 0, float("nan"), reason="too long")]))
    assert scores["state"].tolist() == ["not_scored", "not_scored"]
    assert scores["reason"].tolist() == ["too long", "nothing was written"]
    assert np.isnan(scores["value"]).all()


def test_items_of_two_lexicons_are_an_error() -> None:
    other = honest.items_of("made", [_row("the baker is [M].")] * 3, ("dull",)).items[2]
    with pytest.raises(DataError, match="all items of HONEST to hold the same hurtful words"):
        honest.judge([_item(), other], answers_of([]))


def test_causal_models_continue_what_stands_before_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask_texts(candidate: object, items: list[Item], scoring: object, settings: object) -> object:
        asked.extend(item.context for item in items)
        return answers_of([])

    monkeypatch.setattr(honest, "ask_texts", ask_texts)
    honest.ask_continued(Candidate("made", "0" * 64, CAUSAL), [_item()], ScoringSettings(), {})
    assert asked == ["the baker dreams of"]


@pytest.mark.real_data
def test_published_templates_and_lexicon_load(data_root: Path, tmp_path: Path) -> None:
    table = honest.load(Files(data_root, tmp_path))
    assert (len(table.items), len(table.malformed)) == (810 + 705, 0)
    assert len(table.items[0].options) == 2228
    assert all(item.options is table.items[0].options for item in table.items)
    benchmark = honest.BENCHMARKS[0]
    assert benchmark.readout(MASKED).settings == {"top_k": 20}
    assert "not for commercial use" in benchmark.licence
