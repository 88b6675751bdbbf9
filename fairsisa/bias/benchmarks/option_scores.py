"""Answers to alternatives as one array, a row an item."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fairsisa.bias.answers import Answers
from fairsisa.bias.items import Item
from fairsisa.bias.metrics import ratio


@dataclass(frozen=True, eq=False)
class OptionScores:
    """What a model gave each option of each item.

    `values` has shape (num_items, num_options), NaN where an item has fewer options or one was not answered; `outside`
    is the value of what no option covers (option -1), shape (num_items,), NaN where it was not asked. `reasons` say
    for each item why it cannot be judged, empty where it can.
    """

    values: np.ndarray
    outside: np.ndarray
    reasons: tuple[str, ...]


def option_scores(items: Sequence[Item], answers: Answers, *, per_token: bool = False) -> OptionScores:
    """Return the answers to items as an array; with `per_token`, each value is divided by the tokens it sums over.

    An item cannot be judged when a value of its own options is missing, not a number or infinite.
    """
    frame = answers.frame
    place = {item.item_id: number for number, item in enumerate(items)}
    rows = frame["item_id"].map(place).fillna(-1).to_numpy(dtype=np.int64)
    options = frame["option"].to_numpy(dtype=np.int64)
    numbers = frame["value"].to_numpy(dtype=np.float64)
    if per_token:
        numbers = numbers / np.maximum(frame["num_tokens"].to_numpy(dtype=np.int64), 1)
    values = np.full((len(items), max((len(item.options) for item in items), default=0)), np.nan)
    within = (rows >= 0) & (options >= 0) & (options < values.shape[1])
    values[rows[within], options[within]] = numbers[within]
    outside = np.full(len(items), np.nan)
    beyond = (rows >= 0) & (options == -1)
    outside[rows[beyond]] = numbers[beyond]
    said = dict(_reasons(frame["item_id"], frame["reason"]))
    reasons = tuple(_reason(item, row, said) for item, row in zip(items, values, strict=True))
    return OptionScores(values, outside, reasons)


def as_whole_texts(items: Sequence[Item]) -> list[Item]:
    """Return items that are asked without their context: each option is a whole text."""
    return [replace(item, context="") for item in items]


def shares_of(scores: OptionScores, *, logarithmic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return each option's share of the options' mass, shape of `values`, and the mass outside, shape (num_items,).

    `logarithmic` says that values are log-probabilities and `outside` the log of a mass; else values are
    probabilities, and what they leave is outside. NaN where an item cannot be judged or its options have no mass.
    """
    judged = np.array([not reason for reason in scores.reasons], dtype=bool)
    values = np.where(judged[:, None], scores.values, np.nan)
    if logarithmic:
        top = np.max(values, axis=1, keepdims=True, initial=-np.inf, where=~np.isnan(values))
        masses, outside = np.exp(values - np.where(np.isfinite(top), top, 0.0)), np.exp(scores.outside)
    else:
        masses, outside = values, 1.0 - np.nansum(values, axis=1)
    total = np.nansum(masses, axis=1, keepdims=True)
    return ratio(masses, np.broadcast_to(total, masses.shape)), np.where(judged, outside, np.nan)


def top_margin(values: np.ndarray) -> float:
    """Return by how much the largest of some values leads the second; NaNs are left out."""
    ordered = np.sort(values[~np.isnan(values)])
    return float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else float("nan")


def _reasons(ids: Iterable[str], reasons: Iterable[str]) -> list[tuple[str, str]]:
    return [(item_id, reason) for item_id, reason in zip(ids, reasons, strict=True) if reason]


def _reason(item: Item, values: np.ndarray, said: Mapping[str, Any]) -> str:
    own = values[: len(item.options)]
    missing = np.flatnonzero(~np.isfinite(own))
    if not len(missing):
        return ""
    return str(said.get(item.item_id, f"no finite value for option {missing[0]}"))
