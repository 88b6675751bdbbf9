"""Scikit-learn estimators that make an ensemble's decisions fair."""

from fairsisa.fairness.strategies.aggregate import AggregateThenPostprocess
from fairsisa.fairness.strategies.auto import AutoPostprocess
from fairsisa.fairness.strategies.ensemble import EnsemblePostprocess
from fairsisa.fairness.strategies.linear import GroupBlindPostprocess
from fairsisa.fairness.strategies.members import PostprocessThenAggregate
from fairsisa.fairness.strategies.saving import load_postprocessor
from fairsisa.fairness.strategies.score import ScoreThresholdPostprocess, Unprocessed

__all__ = [
    "AggregateThenPostprocess",
    "AutoPostprocess",
    "EnsemblePostprocess",
    "GroupBlindPostprocess",
    "PostprocessThenAggregate",
    "ScoreThresholdPostprocess",
    "Unprocessed",
    "load_postprocessor",
]
