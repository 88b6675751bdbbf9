"""What an evaluation is given: held-out examples, and the predictors judged on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairsisa.errors import DataError
from fairsisa.fairness.rates import EVERYONE
from fairsisa.tables import TEST, Examples, Predictions


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The examples that predictors are judged on, row by row in the order of `example_ids`.

    `subject_ids` (str) and `labels` (int64 indices into `classes`) have shape (num_examples,), as has each of
    `sensitive_features` (str, or None where unknown). Of two classes the second is the positive one.

    Raises:
        DataError: naming the column and the first example at fault.
    """

    example_ids: tuple[str, ...]
    subject_ids: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    sensitive_features: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        _check_lengths(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def subjects(self) -> np.ndarray:
        """Subject indices 0..num_subjects-1, int64, shape (num_examples,)."""
        return np.unique(self.subject_ids.astype(str), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Predictor:
    """One way to decide, applied to the held-out examples: a constituent, an aggregation, a baseline.

    `decisions` holds class indices, int64, shape (num_examples,). `scores` holds class probabilities, shape
    (num_examples, num_classes), or is None for a predictor that only decides; the area under the ROC curve and
    the calibration error are those of the scores, everything else is of the decisions.

    Raises:
        DataError: naming the predictor, when scores are not probabilities or the shapes do not agree.
    """

    name: str
    decisions: np.ndarray
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.decisions.ndim != 1 or not np.issubdtype(self.decisions.dtype, np.integer):
            raise DataError(
                f"Predictor {self.name!r}: expected decisions as a vector of class indices, "
                f"got {self.decisions.dtype} of shape {self.decisions.shape}."
            )
        if self.scores is not None:
            _check_scores(self.name, self.scores, len(self.decisions))


def held_out(examples: Examples, *, split: str = TEST) -> HeldOut:
    """Return one split of an examples table as held-out examples, in table order."""
    rows = examples.split(split)
    kept = (examples.frame["split"] == split).to_numpy()
    return HeldOut(
        example_ids=tuple(rows["example_id"]),
        subject_ids=rows["subject_id"].to_numpy(dtype=object),
        labels=rows["label"].to_numpy(dtype=np.int64),
        classes=examples.classes,
        sensitive_features={name: examples.sensitive(name)[kept] for name in examples.sensitive_names},
    )


def constituent_predictors(predictions: Predictions) -> list[Predictor]:
    """Return one predictor for each constituent, named `constituent <name>`, deciding for its top score."""
    votes = predictions.votes
    return [
        Predictor(f"constituent {name}", votes[:, place], predictions.scores[:, place])
        for place, name in enumerate(predictions.constituents)
    ]


def check_predictors(held_out: HeldOut, predictors: Sequence[Predictor]) -> None:
    """Raise DataError unless the predictors have different names and speak of these examples and classes."""
    if not predictors:
        raise DataError("Expected at least one predictor to evaluate, got none.")
    names = [predictor.name for predictor in predictors]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"Expected predictors of different names; {repeated[0]!r} comes more than once.")
    for predictor in predictors:
        if len(predictor.decisions) != len(held_out):
            raise DataError(
                f"Predictor {predictor.name!r}: expected {len(held_out)} decisions, one a held-out example, "
                f"got {len(predictor.decisions)}."
            )
        num_classes = len(held_out.classes)
        if predictor.decisions.min() < 0 or predictor.decisions.max() >= num_classes:
            raise DataError(f"Predictor {predictor.name!r}: expected decisions in 0..{num_classes - 1}.")
        if predictor.scores is not None and predictor.scores.shape[1] != num_classes:
            raise DataError(
                f"Predictor {predictor.name!r}: expected scores of {num_classes} classes, "
                f"got {predictor.scores.shape[1]}."
            )


def check_predictions(held_out: HeldOut, predictions: Predictions) -> None:
    """Raise DataError unless the constituents' predictions are of the held-out examples, in their order."""
    if predictions.example_ids == held_out.example_ids:
        return
    pairs = zip(held_out.example_ids, predictions.example_ids, strict=False)
    first = next((f"{ours!r} against {theirs!r}" for ours, theirs in pairs if ours != theirs), "the lengths")
    raise DataError(
        f"Expected predictions of the {len(held_out)} held-out examples in their order, got "
        f"{len(predictions.example_ids)} rows; they first differ in {first}."
    )


def _check_lengths(held_out: HeldOut) -> None:
    columns = {"subject_ids": held_out.subject_ids, "labels": held_out.labels}
    columns |= {f"sensitive feature {name!r}": values for name, values in held_out.sensitive_features.items()}
    for name, values in columns.items():
        if values.shape != (len(held_out),):
            raise DataError(f"Expected {len(held_out)} values of {name}, one an example, got shape {values.shape}.")
    if not len(held_out):
        raise DataError("Expected held-out examples to judge predictors on, got none.")


def _check_values(held_out: HeldOut) -> None:
    labels = held_out.labels
    outside = (labels < 0) | (labels >= len(held_out.classes))
    if not np.issubdtype(labels.dtype, np.integer) or outside.any():
        first = held_out.example_ids[int(outside.argmax())]
        raise DataError(f"Expected integer labels in 0..{len(held_out.classes) - 1}; look at example {first!r}.")
    if len(set(held_out.subject_ids)) < 2:
        raise DataError(
            "Expected examples of at least two subjects, got one: intervals come from resampling subjects. "
            "Where nothing tells subjects apart, let each example be its own."
        )
    for name, values in held_out.sensitive_features.items():
        if name == EVERYONE:
            raise DataError("Expected every sensitive feature to have a name, got an empty one.")
        bad = [place for place, value in enumerate(values) if not (value is None or isinstance(value, str))]
        if bad:
            raise DataError(
                f"Expected sensitive feature {name!r} to hold text, or None where unknown; {len(bad)} rows do not, "
                f"first example {held_out.example_ids[bad[0]]!r} with {values[bad[0]]!r}."
            )


def _check_scores(name: str, scores: np.ndarray, num_examples: int) -> None:
    if scores.ndim != 2 or len(scores) != num_examples:
        raise DataError(f"Predictor {name!r}: expected scores of shape ({num_examples}, classes), got {scores.shape}.")
    fair = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) < 1e-3)
    if not fair.all():
        row = int(np.argmin(fair))
        raise DataError(
            f"Predictor {name!r}: expected class probabilities that sum to 1; row {row} holds {scores[row].tolist()}."
        )
