"""Flips, all-flips and margins against counts by hand, published counts and properties."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.bias.behaviour import LEFT_OUT, behaviour, changes
from fairsisa.bias.benchmark import score_row, scores_table
from fairsisa.bias.items import Item
from fairsisa.errors import DataError


def table(chosen: list[int | None], margins: list[float] | None = None, *, column: str = "correct") -> pd.DataFrame:
    """A scores table of four-option items whose key is option 0; None is an item that was not scored."""
    rows = []
    for number, choice in enumerate(chosen):
        item = Item(f"i{number}", "", (), f"c{number // 2}")
        if choice is None:
            rows.append(score_row(item, reason="it was too long"))
        else:
            margin = 0.5 if margins is None else margins[number]
            rows.append(score_row(item, answer=str(choice), margin=margin, **{column: float(choice == 0)}))
    return scores_table(rows)


def of_counts(
    correct_to_wrong: int, wrong_to_correct: int, wrong_to_wrong: int, num: int
) -> tuple[list[int], list[int]]:
    rest = num - correct_to_wrong - wrong_to_correct - wrong_to_wrong
    base = [0] * correct_to_wrong + [1] * wrong_to_correct + [1] * wrong_to_wrong + [0] * (rest // 2)
    other = [2] * correct_to_wrong + [0] * wrong_to_correct + [2] * wrong_to_wrong + [0] * (rest // 2)
    same = [3] * (rest - rest // 2)
    return base + same, other + same


# The counts of ab-ch90/quantization-flips-small-llms, whose per-item answers are public, and its Table 1.
@pytest.mark.parametrize(
    ("counts", "num", "published"),
    [
        ((86, 43, 57), 975, (13.2, 19.1, -4.4)),  # Qwen2.5-1.5B, MMLU, int4
        ((46, 46, 42), 975, (9.4, 13.7, 0.0)),  # gemma-2-2b, MMLU, int4
        ((16, 13, 10), 1000, (2.9, 3.9, -0.3)),  # Llama-3.2-3B, ARC, int8
        ((25, 21, 10), 980, (4.7, 5.7, -0.4)),  # Phi-3.5-mini, CommonsenseQA, int4
    ],
)
def test_published_counts_give_published_flips(counts, num, published):
    base, other = of_counts(*counts, num)
    found = behaviour(table(base), table(other))
    assert (found.correct_to_wrong, found.wrong_to_correct, found.wrong_to_wrong) == counts
    assert found.num_items == num
    assert (found.flips, found.all_flips, found.net_change) == pytest.approx(published, abs=0.05)


choices = st.one_of(st.none(), st.integers(0, 3))
pairs = st.lists(st.tuples(choices, choices), min_size=1, max_size=40)


@settings(max_examples=40)
@given(pairs)
def test_net_change_is_within_flips_and_flips_within_all_flips(pairs):
    base, other = map(list, zip(*pairs, strict=True))
    found = behaviour(table(base), table(other))
    both = [(before, after) for before, after in pairs if before is not None and after is not None]
    assert found.num_items == len(both)
    assert found.num_items + sum(getattr(found, name) for name in LEFT_OUT) == len(pairs)
    if not both:
        assert math.isnan(found.flips)
        assert math.isnan(found.net_change)
        return
    # The second path: correctness and answers compared one by one, and accuracy taken from each side alone.
    assert found.flips == pytest.approx(100 * np.mean([(b == 0) != (q == 0) for b, q in both]))
    assert found.all_flips == pytest.approx(100 * np.mean([b != q for b, q in both]))
    accuracies = [np.mean([choice == 0 for choice in side]) for side in zip(*both, strict=True)]
    assert found.net_change == pytest.approx(100 * (accuracies[1] - accuracies[0]))
    assert abs(found.net_change) <= found.flips + 1e-9 <= found.all_flips + 2e-9


@settings(max_examples=40)
@given(st.lists(choices, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_a_table_against_itself_changes_nothing_in_whatever_order(chosen, random):
    base = table(chosen)
    order = list(range(len(base)))
    random.shuffle(order)
    found = behaviour(base, base.iloc[order].reset_index(drop=True))
    assert found.correct_to_wrong == found.wrong_to_correct == found.wrong_to_wrong == 0
    assert found.scored_in_base_only == found.scored_in_other_only == 0
    assert found.scored_in_neither == chosen.count(None)


@settings(max_examples=40)
@given(pairs)
def test_swapping_the_models_swaps_the_flips(pairs):
    base, other = (table(list(side)) for side in zip(*pairs, strict=True))
    there, back = behaviour(base, other), behaviour(other, base)
    assert (there.correct_to_wrong, there.wrong_to_correct) == (back.wrong_to_correct, back.correct_to_wrong)
    assert there.wrong_to_wrong == back.wrong_to_wrong
    assert there.scored_in_base_only == back.scored_in_other_only


def test_margins_are_those_of_the_base():
    base = table([0, 0, 1, 1, 0], [0.1, 0.9, 0.2, 0.6, 0.8])
    other = table([1, 0, 2, 1, None], [0.0, 0.0, 0.0, 0.0, 0.0])
    found = behaviour(base, other)
    assert found.margin_changed == pytest.approx(0.15)  # the first and the third
    assert found.margin_unchanged == pytest.approx(0.75)  # the last was not scored
    assert found.scored_in_base_only == 1


def test_each_item_says_how_it_changed():
    found = changes(table([0, 1, 1, 2, 0, None, 0, None]), table([1, 0, 2, 2, 0, 1, None, None]))
    assert found["change"].tolist() == [
        "correct_to_wrong",
        "wrong_to_correct",
        "wrong_to_wrong",
        "unchanged",
        "unchanged",
        "scored_in_other_only",
        "scored_in_base_only",
        "scored_in_neither",
    ]
    assert found["cluster"].tolist()[:4] == ["c0", "c0", "c1", "c1"]


def test_right_answers_written_differently_are_one():
    base, other = table([0, 1]), table([0, 1])
    other.loc[0, "answer"] = "0.0"
    other.loc[1, "answer"] = "1.0"
    assert changes(base, other)["change"].tolist() == ["unchanged", "wrong_to_wrong"]


def test_outcomes_flip_too():
    base, other = table([0, 1, 0], column="outcome"), table([1, 0, 0], column="outcome")
    found = behaviour(base, other, column="outcome")
    assert found.flips == pytest.approx(200 / 3)
    assert behaviour(base, other).num_items == 0


def test_tables_of_different_items_are_refused():
    five = table([0] * 5)
    with pytest.raises(DataError, match="items of the base alone: i3, i4"):
        changes(five, table([0] * 3))
    with pytest.raises(DataError, match="items of the other model alone: i1, i2, i3 and 1 more"):
        changes(table([0]), five)
    with pytest.raises(DataError, match="an item twice: i2"):
        changes(pd.concat([five, five.iloc[[2]]]), five)


def test_a_score_that_is_no_mark_is_refused():
    base = table([0, 1])
    base.loc[1, "correct"] = 0.5
    with pytest.raises(DataError, match="other than 0 and 1 in 'correct': i1"):
        changes(base, table([0, 1]))
