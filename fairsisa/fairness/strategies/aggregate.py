"""Aggregate the constituents first, then post-process the one label that is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fairsisa.fairness.strategies.inputs import Inputs, majority
from fairsisa.fairness.strategies.lookup import TablePostprocessor, View
from fairsisa.settings import one_of

AGGREGATIONS = ("majority_vote", "mean_score")


class AggregateThenPostprocess(TablePostprocessor):
    """Derive the decision from the aggregated label and the group (Hardt et al. 2016, on the ensemble's one label).

    Method A of FairSISA (Kadhe et al. 2023): C * G mixing probabilities, whatever the number of constituents.

    Parameters:
        aggregation: "majority_vote", ties to the lower class, or "mean_score", the class of highest mean score.

    All other parameters and attributes are those of `Postprocessor`.
    """

    def __init__(self, *, aggregation: str = "majority_vote", **common: Any) -> None:
        super().__init__(**common)
        self.aggregation = aggregation

    def _check_parameters(self) -> None:
        super()._check_parameters()
        one_of("aggregation", self.aggregation, AGGREGATIONS)

    def _original(self, inputs: Inputs) -> np.ndarray:
        if self.aggregation == "majority_vote":
            return majority(inputs.votes, inputs.num_classes)
        return np.asarray(inputs.mean_scores.argmax(axis=1))

    def _views(self) -> Sequence[View]:
        return [lambda inputs, groups: self._original(inputs)]
