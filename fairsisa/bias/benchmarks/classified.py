"""Texts that a classifier calls harmful or not: which of its classes mean harmful, and what its probabilities tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.benchmark import Columns, by_item, score_row, scores_table
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.metrics import ratio
from fairsisa.bias.readouts.classes import ask_classes
from fairsisa.errors import ConfigError
from fairsisa.settings import ScoringSettings, nearest
from fairsisa.settings.checks import refuse_unknown

HARMFUL = frozenset(
    ("hate", "hateful", "hatespeech", "toxic", "toxicity", "severetoxic", "severetoxicity", "abusive", "label1", "1")
) | frozenset(
    (
        "offensive",
        "offensivelanguage",
        "obscene",
        "threat",
        "insult",
        "identityhate",
        "identityattack",
        "sexualexplicit",
    )
)
HARMLESS = frozenset(
    ("nothate", "nonhate", "nohate", "nothateful", "nonhateful", "nontoxic", "nottoxic", "nontoxicity", "label0", "0")
) | frozenset(("neutral", "normal", "none", "neither", "notoffensive", "nonoffensive", "acceptable", "clean", "safe"))
THRESHOLD = 0.5
HARMFUL_LABEL = "label:harmful"


def harmful_classes(classes: Sequence[str], named: Sequence[str] = ()) -> tuple[str, ...]:
    """Return which classes mean harmful: those that are named, else those whose name says so.

    A name counts without case, spaces and signs: hate, toxic, offensive, LABEL_1 and the like are harmful, normal,
    neither, non-toxic, LABEL_0 and the like are not.

    Raises:
        ConfigError: when a named class does not exist, or, if none is named, a class says neither or none says harmful.
    """
    for name in named:
        if name not in classes:
            raise ConfigError(f"positive_classes names {name!r}, no class of this model.{nearest(name, classes)}")
    if named:
        return tuple(named)
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in classes}
    unclear = [name for name, each in plain.items() if each not in HARMFUL | HARMLESS]
    found = tuple(name for name, each in plain.items() if each in HARMFUL)
    if unclear or not found:
        raise ConfigError(
            f"Cannot tell which classes mean harmful: {', '.join(classes)}. Name those with positive_classes=[...]."
        )
    return found


def ask_harmful(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Return the probability that each text is harmful: the sum over harmful classes, one answer an item.

    Where the probabilities of an item's classes do not add up to one, as of labels that do not exclude each other, it
    is the greatest instead. `settings` may hold `positive_classes`, see `harmful_classes`.

    Raises:
        ConfigError: as `harmful_classes`.
    """
    refuse_unknown("the settings of harmful classes", settings, ("positive_classes",))
    harmful = harmful_classes(candidate.classes, tuple(settings.get("positive_classes", ())))
    answers = ask_classes(candidate, items, scoring, {})
    return answers_of(_folded(item.item_id, said, harmful) for item, said in by_item(items, answers))


def judge_harmful(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Return scores of items whose label `harmful` is the key.

    `value` is the probability that the text is harmful, the answer "harmful" where it is above one half; `correct`
    says whether that is the key; `outcome` is 1 where a harmless text is called harmful and 0 where it is not, NaN for
    harmful texts; `margin` is the distance between the two probabilities.
    """
    rows = []
    for item, said in by_item(items, answers):
        value = float(said["value"].iloc[0]) if len(said) else math.nan
        if math.isnan(value):
            reason = str(said["reason"].iloc[0]) if len(said) else ""
            rows.append(score_row(item, reason=reason or "the text has no probability"))
            continue
        called, key = value > THRESHOLD, bool(item.labels["harmful"])
        rows.append(
            score_row(
                item,
                answer="harmful" if called else "harmless",
                outcome=math.nan if key else float(called),
                correct=float(called == key),
                value=value,
                margin=abs(2.0 * value - 1.0),
            )
        )
    return scores_table(rows)


def auc_of(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of `value` for the key `harmful`, ties counted half."""
    scores, harmful = sides(columns)
    return auc_between(scores[harmful], weights[harmful], scores[~harmful], weights[~harmful])


def sides(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities, and which rows are harmful."""
    return np.asarray(columns["value"], dtype=np.float64), np.asarray(columns[HARMFUL_LABEL], dtype=bool)


def auc_between(
    positives: np.ndarray, positive_weights: np.ndarray, negatives: np.ndarray, negative_weights: np.ndarray
) -> np.ndarray:
    """Return P(a positive scores above a negative) + P(equal) / 2 under each column of weights; NaN without either."""
    below = mass_below(negatives, negative_weights, positives)
    return ratio((positive_weights * below).sum(axis=0), positive_weights.sum(axis=0) * negative_weights.sum(axis=0))


def mass_below(scores: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the weight of `scores` below each of `at`, equal ones half, shape (num_at, num_replicates)."""
    order = np.argsort(scores, kind="stable")
    cumulated = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights[order], axis=0)])
    first, last = (np.searchsorted(scores[order], at, side=side) for side in ("left", "right"))
    return np.asarray((cumulated[first] + cumulated[last]) / 2.0)


def rates_by(wrong: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the share of wrong rows in each group, sorted by name, shape (num_groups, num_replicates).

    Rows whose group is empty belong to none.
    """
    names = sorted({str(name) for name in groups if name})
    rates = [ratio(wrong[own] @ weights[own], weights[own].sum(axis=0)) for own in (groups == name for name in names)]
    return np.array(rates, dtype=np.float64).reshape(len(names), weights.shape[1])


def _folded(item_id: str, said: pd.DataFrame, harmful: Sequence[str]) -> Answer:
    values = said["value"].to_numpy(dtype=np.float64)
    if np.isnan(values).any():
        return Answer(item_id, 1, math.nan, reason=str(said["reason"].iloc[0]))
    own = values[said["text"].isin(harmful).to_numpy()]
    exclusive = math.isclose(values.sum(), 1.0, abs_tol=1e-3)
    return Answer(item_id, 1, float(own.sum() if exclusive else own.max()), text="harmful")
