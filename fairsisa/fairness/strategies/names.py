"""Strategies by name, as settings and commands know them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.saving import CLASSES


def _make(class_name: str, /, **parameters: Any) -> Postprocessor:
    """Return a new estimator; its module is imported now, since strategies may themselves choose among strategies."""
    made: Postprocessor = getattr(importlib.import_module(CLASSES[class_name]), class_name)(**parameters)
    return made


STRATEGIES: Mapping[str, Callable[..., Postprocessor]] = MappingProxyType(
    {
        "aggregate_first": partial(_make, "AggregateThenPostprocess", aggregation="majority_vote"),
        "aggregate_first_score": partial(_make, "AggregateThenPostprocess", aggregation="mean_score"),
        "members_majority": partial(_make, "PostprocessThenAggregate", combine="majority"),
        "members_random": partial(_make, "PostprocessThenAggregate", combine="random_member"),
        "ensemble_pattern": partial(_make, "EnsemblePostprocess", states="pattern"),
        "ensemble_vote_count": partial(_make, "EnsemblePostprocess", states="vote_count"),
        "ensemble_pooled": partial(_make, "EnsemblePostprocess", states="pooled_pattern"),
        "score_threshold": partial(_make, "ScoreThresholdPostprocess"),
        "unprocessed": partial(_make, "Unprocessed"),
        "group_blind": partial(_make, "GroupBlindPostprocess"),
        "auto": partial(_make, "AutoPostprocess"),
    }
)
"""From a strategy's name to what makes it, given the parameters that all share."""
