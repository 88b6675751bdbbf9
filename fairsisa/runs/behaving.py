"""How two models' answers on one benchmark differ: flips, margins, and divergence over the options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.behaviour import UNCHANGED, behaviour, changes
from fairsisa.bias.benchmark import COMPLETIONS, PROBABILITIES
from fairsisa.bias.divergence import option_divergence
from fairsisa.bias.evaluation import Evaluated

SMALLEST = 1e-300
MARGINS = ("item_id", "margin", "changed")


def behaviour_row(base: Evaluated, other: Evaluated) -> Iterator[dict[str, Any]]:
    """Yield what `report.bias_content.BEHAVED` tells of two models, where the benchmark has a 0/1 column to flip.

    Flips and the change of accuracy are shares in [0, 1], of `correct` where items have a key, else of `outcome`.
    """
    column = flipping_column(base.scores)
    if column is None:
        return
    found = behaviour(base.scores, other.scores, column=column)
    forward, backward = option_kl(base, other)
    yield {
        "num_items": found.num_items,
        "flips": found.flips / 100,
        "all_flips": found.all_flips / 100,
        "correct_to_wrong": found.correct_to_wrong,
        "wrong_to_correct": found.wrong_to_correct,
        "wrong_to_wrong": found.wrong_to_wrong,
        "accuracy_change": found.net_change / 100,
        "top_margin_changed": found.margin_changed,
        "top_margin_unchanged": found.margin_unchanged,
        "kl_forward": forward,
        "kl_backward": backward,
        "flips_of": column,
    }


def margin_rows(base: Evaluated, other: Evaluated) -> pd.DataFrame:
    """Return the base's top margin of each item scored by both, and whether its answer changed."""
    column = flipping_column(base.scores)
    if column is None or base.scores["margin"].isna().all():
        return pd.DataFrame(columns=list(MARGINS))
    table = changes(base.scores, other.scores, column=column)
    both = table[~table["change"].str.startswith("scored_in") & table["base_margin"].notna()]
    return pd.DataFrame(
        {"item_id": both["item_id"], "margin": both["base_margin"], "changed": both["change"] != UNCHANGED}
    )


def flipping_column(scores: pd.DataFrame) -> str | None:
    """Return "correct" where items have a key, else "outcome" where it is 0 or 1, else None."""
    for column in ("correct", "outcome"):
        values = scores[column].dropna().to_numpy(dtype=np.float64)
        if len(values) and np.isin(values, (0.0, 1.0)).all():
            return column
    return None


def option_kl(base: Evaluated, other: Evaluated) -> tuple[float, float]:
    """Return the mean KL divergence over items' options, in nats, base to other and back; NaN without options."""
    tables = _options(base), _options(other)
    if tables[0] is None or tables[1] is None or tables[0].shape[1] < 2 or tables[0].shape != tables[1].shape:
        return float("nan"), float("nan")
    forward, backward = option_divergence(
        tables[0].to_numpy(dtype=np.float64), tables[1].loc[tables[0].index].to_numpy(dtype=np.float64)
    )
    there = np.isfinite(forward) & np.isfinite(backward)
    return (float(forward[there].mean()), float(backward[there].mean())) if there.any() else (np.nan, np.nan)


def _options(each: Evaluated) -> pd.DataFrame | None:
    """Return the log-likelihoods of the options, items by options; None where options do not compete."""
    if each.readout.answers == COMPLETIONS:
        return None
    frame = each.answers.frame
    table = frame[frame["option"] >= 0].pivot_table(index="item_id", columns="option", values="value", dropna=False)
    return table.clip(lower=SMALLEST).map(np.log) if each.readout.answers == PROBABILITIES else table
