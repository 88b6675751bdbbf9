"""What a run's served constituents say of new inputs, and the fair decisions that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.data.encoding import Tokenizer, encode_examples
from fairsisa.errors import DataError, RunError, StaleError
from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.models.base import find_base, load_tokenizer
from fairsisa.runs.assembly import assemble
from fairsisa.runs.directory import Ensemble, Run
from fairsisa.runs.fitting import entry_of, load_fitted, other_votes, trouble_of, voting
from fairsisa.sisa.chain import Chain
from fairsisa.sisa.ensemble import PredictTask, score_unkept
from fairsisa.sisa.training import encoder_features
from fairsisa.tables import CALIBRATION, FEATURE, TEST, Examples, Predictions


def score_new(run: Run, inputs: Any, *, example_ids: Sequence[str] | None = None) -> Predictions:
    """Return what the constituents that a run serves say of raw inputs; no trace of these is kept on disk.

    `inputs` are texts, shape (num_examples,), or features: an array of shape (num_examples, num_features), or a frame
    with the run's columns in any order. `example_ids` None numbers the rows.

    Raises:
        RunError: when the run is not trained, or no constituent is left.
        DataError: when the inputs are not of the run's kind.
    """
    return _scored(_served(run), inputs, example_ids)


def fair_predictor(run: Run, name: str) -> Postprocessor:
    """Return a post-processor of the run that takes raw inputs: `predict(X, sensitive_features=..., example_ids=...)`.

    At every prediction it looks whether it is still what the run serves, and refuses where not.

    Raises:
        ConfigError: when the run has none of that name.
        StaleError: when it is out of service or stale, here and at every prediction from raw inputs.
    """
    fitted = load_fitted(run, name)
    artefact = str(run.ensemble.postprocessors[name]["artefact"])
    fitted.estimator = RunEnsemble(run, name, artefact)
    vars(fitted).pop("n_features_in_", None)  # it was fitted on votes; raw inputs have other columns
    return fitted


class RunEnsemble:
    """A handle on the ensemble that a run serves, as the `estimator` of a post-processor.

    With `postprocessor` and `artefact`, it scores only while the run serves that artefact under that name, fitted on
    the votes it serves.
    """

    def __init__(self, run: Run, postprocessor: str | None = None, artefact: str | None = None) -> None:
        self.run, self.postprocessor, self.artefact = run, postprocessor, artefact
        self._known: _Served | None = None

    def __repr__(self) -> str:
        return f"RunEnsemble({str(self.run.directory)!r})"

    def predict_scores(self, X: Any) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Return class probabilities of raw inputs, float32, shape (num_examples, num_constituents, num_classes).

        Predictions of the run are passed on as they are.

        Raises:
            StaleError: when the post-processor is no longer the one that the run serves.
            RunError: as `score_new` does, and so DataError.
        """
        ensemble = self.run.ensemble
        if self.postprocessor is not None:
            _require_fresh(self.run, ensemble, self.postprocessor, self.artefact)
        if isinstance(X, Predictions):
            return X.scores
        if self._known is None or self._known.ensemble != ensemble:
            self._known = _served(self.run)
        return _scored(self._known, X, None).scores


@dataclass(frozen=True, eq=False)
class _Served:
    """The chains that a pointer's checkpoints stand for, and what they read: a table without rows tells its columns."""

    run: Run
    ensemble: Ensemble
    chains: tuple[Chain, ...]
    kind: Examples
    tokenizer: Tokenizer | None


def _served(run: Run) -> _Served:
    ensemble, examples, settings = run.ensemble, run.examples, run.settings
    assembly = assemble(settings, examples, run.partition, run.store.location, baselines=())
    whole = [name for name, steps in ensemble.checkpoints.items() if len(steps) == run.num_slices]
    chains = tuple(chain for chain in assembly.constituents if chain.constituent in whole)
    tokenizer = load_tokenizer(find_base(settings.model)) if examples.is_text else None
    return _Served(run, ensemble, chains, examples.keep(np.zeros(len(examples), dtype=bool)), tokenizer)


def _scored(served: _Served, inputs: Any, example_ids: Sequence[str] | None) -> Predictions:
    examples = as_examples(served.kind, inputs, example_ids)
    encoded = encode_examples(examples, served.tokenizer, served.run.settings.model.max_length)
    if served.chains and served.chains[0].reads_features:  # once, not once a constituent
        encoded = encoded.with_features(encoder_features(served.chains[0], encoded))
    found = {chain.constituent: score_unkept(PredictTask(chain, encoded)) for chain in served.chains}
    scores = {name: made for name, made in found.items() if made is not None}
    if not scores:
        raise RunError(f"{served.run.directory} serves no constituent that votes: train it, or end what unlearns it.")
    return Predictions(encoded.example_ids, tuple(scores), np.stack(list(scores.values()), axis=1))


def as_examples(kind: Examples, inputs: Any, example_ids: Sequence[str] | None) -> Examples:
    """Return raw inputs as an examples table; labels and subjects stand for nothing."""
    columns = _texts(inputs) if kind.is_text else _features(kind, inputs)
    count = len(next(iter(columns.values())))
    ids = [f"row-{row}" for row in range(count)] if example_ids is None else list(example_ids)
    if len(ids) != count:
        raise DataError(f"Expected {count} example ids, one a row, got {len(ids)}.")
    shared = {"example_id": ids, "subject_id": ids, "label": np.zeros(count, dtype=np.int64), "split": [TEST] * count}
    return Examples(kind.name, pd.DataFrame(shared | columns), kind.classes)


def _texts(inputs: Any) -> dict[str, Any]:
    values = inputs["text"] if isinstance(inputs, pd.DataFrame) and "text" in inputs.columns else inputs
    if isinstance(values, str | pd.DataFrame) or np.ndim(values) != 1:
        raise DataError("Expected texts as a list, or a frame with a column text; this run reads texts.")
    return {"text": np.asarray(values, dtype=object)}


def _features(kind: Examples, inputs: Any) -> dict[str, Any]:
    names = kind.feature_names
    if isinstance(inputs, pd.DataFrame):
        frame = inputs.rename(columns=lambda column: str(column).removeprefix(FEATURE))
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise DataError(f"Expected the features {', '.join(names)}; {', '.join(missing)} not found.")
        inputs = frame[list(names)].to_numpy()
    values = np.asarray(inputs)
    if values.ndim != 2 or values.shape[1] != len(names) or not np.issubdtype(values.dtype, np.number):
        raise DataError(f"Expected numbers of shape (num_examples, {len(names)}), got {values.dtype} {values.shape}.")
    return {FEATURE + name: values[:, place].astype(np.float32) for place, name in enumerate(names)}


def _require_fresh(run: Run, ensemble: Ensemble, name: str, artefact: str | None) -> None:
    entry = entry_of(run, ensemble, name)
    trouble = trouble_of(run, name, entry)
    if trouble is None:
        parents = run.store.manifest(entry["artefact"]).lineage.parents
        trouble = None if parents == tuple(voting(ensemble, CALIBRATION).values()) else other_votes(run, name, entry)
    if trouble is not None:
        raise StaleError(str(trouble))
    if entry["artefact"] != artefact:
        raise StaleError(
            f"{run.directory} serves another post-processor {name!r} than the one loaded: load it again with "
            "fair_predictor."
        )
