"""The words of a report: metric names, what each means, and which way is good."""

from __future__ import annotations

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "expected_calibration_error": "Calibration error",
    "equalized_odds_difference": "Equalized odds difference",
    "equalized_odds_difference_mean": "Equalized odds difference (mean)",
    "equal_opportunity_difference": "Equal opportunity difference",
    "predictive_equality_difference": "Predictive equality difference",
    "demographic_parity_difference": "Demographic parity difference",
    "true_positive_rate": "True positive rate",
    "false_positive_rate": "False positive rate",
    "selection_rate": "Selection rate",
}
HIGHER_IS_BETTER = ("accuracy", "macro_f1", "auroc")
