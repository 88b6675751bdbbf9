"""Scikit-learn estimators that make an ensemble's decisions fair."""

from fairsisa.fairness.strategies.aggregate import AggregateThenPostprocess
from fairsisa.fairness.strategies.ensemble import EnsemblePostprocess
from fairsisa.fairness.strategies.saving import load_postprocessor
from fairsisa.fairness.strategies.score import ScoreThresholdPostprocess, Unprocessed

__all__ = [
    "AggregateThenPostprocess",
    "EnsemblePostprocess",
    "ScoreThresholdPostprocess",
    "Unprocessed",
    "load_postprocessor",
]
