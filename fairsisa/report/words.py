"""The words of a report: the names of metrics, what they mean, how numbers are written."""

from __future__ import annotations

import math

UNDEFINED = "undefined"
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "expected_calibration_error": "Calibration error",
    "equalized_odds_difference": "Equalized odds difference",
    "equalized_odds_difference_mean": "Equalized odds difference, mean",
    "equal_opportunity_difference": "Equal opportunity difference",
    "predictive_equality_difference": "Predictive equality difference",
    "demographic_parity_difference": "Demographic parity difference",
    "true_positive_rate": "True positive rate",
    "false_positive_rate": "False positive rate",
    "selection_rate": "Selection rate",
}
MEANINGS = {
    "accuracy": "Share of examples decided rightly. Higher is better.",
    "macro_f1": "Mean over classes of the F1 score: rare classes count as much as common ones. Higher is better.",
    "auroc": (
        "Chance that a positive example scores above a negative one; 0.5 is guessing. With more than two classes, the "
        "mean of each class against the rest. Higher is better."
    ),
    "expected_calibration_error": (
        "Mean distance between how sure the top score is and how often it is right, in 15 bins. Lower is better."
    ),
    "true_positive_rate": "Among examples whose label is positive, the share decided positive.",
    "false_positive_rate": "Among examples whose label is negative, the share decided positive.",
    "selection_rate": "Among all examples, the share decided positive.",
    "equalized_odds_difference": (
        "The larger of two differences over groups: of true positive rates and of false positive rates, each largest "
        "minus smallest. 0 means that errors fall on all groups alike. Lower is better."
    ),
    "equalized_odds_difference_mean": "The mean of these two differences instead of the larger.",
    "equal_opportunity_difference": "Largest minus smallest true positive rate over groups.",
    "predictive_equality_difference": "Largest minus smallest false positive rate over groups.",
    "demographic_parity_difference": "Largest minus smallest selection rate over groups; labels play no part.",
}
TERMS = {
    "sensitive feature, group": "A protected column of the data, such as gender, and one of its values.",
    "shard, constituent": (
        "The training examples are dealt to disjoint shards by person; the model trained on one shard is a "
        "constituent. Deleting a person retrains only the constituent of that person's shard."
    ),
    "slice": (
        "A shard is trained in ordered parts, with a checkpoint after each; deletion restarts at the first slice that "
        "held the person."
    ),
    "ensemble": "All constituents together, their outputs made one by a rule such as a majority vote.",
    "baseline": "A single model to compare with: trained on all examples, or on as many as one shard has.",
    "interval": (
        "What the number might have been with other people in the held-out examples: people are drawn again with "
        "replacement, each with all their examples, and the middle of the resulting values is shown."
    ),
}

LIMITS = (
    "Whether a system is fair depends on what its decisions do to people: which errors harm whom, and who can object. "
    "A table of rates describes a model on one set of examples. It can show a problem; it cannot show that there is "
    "none, and no single number here tells which difference matters.",
    "Labels are taken as true and groups as recorded. Where labels carry past unfairness, a model that repeats it "
    "scores well. People whose group is unknown are left out, groups that nobody recorded are not seen, and a "
    "difference within a combination of features shows only if that combination is given as a feature of its own.",
    "Where groups differ in how common the positive label is, equalized odds, demographic parity and calibration by "
    "group cannot in general hold together (Kleinberg et al. 2016; Chouldechova 2017). Lowering one difference may "
    "raise another; which one to hold is a choice to make and to defend, not a result.",
    "The intervals tell how the numbers would move with other people from the same source. They do not cover another "
    "training seed, another dealing of people to shards, or a world that differs from these data. With many "
    "predictors, features and groups, some intervals miss the truth by chance alone: look for patterns, not for the "
    "largest number.",
    "Deletion by retraining removes a person's influence on the weights that were trained here. What a pre-trained "
    "base model learnt earlier stays, and nothing on this page is evidence of a deletion.",
)


def number(value: float) -> str:
    """Return a rate or a difference with three decimals, or say that it does not exist."""
    return f"{value:.3f}" if math.isfinite(value) else UNDEFINED


def percent(value: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else UNDEFINED


def signed(value: float) -> str:
    """Return a difference with its sign and three decimals."""
    return f"{value:+.3f}"


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign, without the unit."""
    return f"{100 * value:+.1f}"


def duration(seconds: float) -> str:
    """Return a time span in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number_of: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def listed(names: list[str], *, most: int = 5) -> str:
    """Return names in a row, the rest as a number."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
