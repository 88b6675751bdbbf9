"""The classifiers that rate what models write, and how often they are wrong themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.rating import RATING, rated
from fairsisa.data.corpora import load_corpus
from fairsisa.errors import ConfigError
from fairsisa.runs.candidates import named_models
from fairsisa.runs.directory import Run
from fairsisa.runs.training import data_root
from fairsisa.settings import BiasSettings, PathSettings, ScoringSettings
from fairsisa.store import Store
from fairsisa.tables import TEST, Examples

RATERS = ("toxicity", "regard")
MOST_TEXTS = 4000


@dataclass(frozen=True, eq=False)
class Rater:
    """A classifier of texts, its store, and its own error on texts that ours never read (`facts`, by name)."""

    candidate: Candidate
    scoring: ScoringSettings
    store: Store
    facts: dict[str, Any]

    def rate(self, items: Sequence[Item], answers: Answers) -> Answers:
        """Return answers with the probability of each class for each text."""
        return rated(answers, self.candidate, self.scoring, store=self.store)


def find_rater(
    what: str, settings: BiasSettings, scoring: ScoringSettings, *, paths: PathSettings, store: Store
) -> Rater:
    """Return the classifier that rates texts for "toxicity" or "regard": the one that is named, else our own.

    Its error is measured on the test split of the corpus of that name, held out from ours; another's may have been
    trained on it.

    Raises:
        ConfigError: when none is named and ours is not trained, naming the command that trains it.
    """
    named = getattr(settings, what)
    if named is None:
        own = Path(paths.root).expanduser() / f"{what}_rater"
        if not Run(own).exists:
            raise ConfigError(
                f"Texts are to be rated for {what}: set {what}=<hub id, folder or run>, or train ours once by "
                f"`fairsisa train experiment={what}_rater run={own}`."
            )
        named = str(own)
    found = named_models([named], scoring, store=store, tokenizer=settings.tokenizer)[0]
    candidate = found.open()
    corpus = load_corpus({"name": what}, root=data_root(paths), cache=Path(paths.cache).expanduser())
    error = rater_error(candidate, corpus, scoring, store=found.store)
    return Rater(candidate, scoring, found.store, {"rates": what, "rater": named, **error})


def rater_error(candidate: Candidate, corpus: Examples, scoring: ScoringSettings, *, store: Store) -> dict[str, Any]:
    """Return how often a classifier is right about test texts of a corpus whose classes it knows, 4,000 at most.

    The keys are num_texts, accuracy, balanced_accuracy and, for two classes, auc. A classifier of other classes has
    none of these: they are left out, and `told` says so.
    """
    test = corpus.split(TEST)
    if len(test) > MOST_TEXTS:  # of every source its share: a table is in the order of its sources
        test = test.sample(MOST_TEXTS, random_state=0)
    if not set(corpus.classes) <= set(candidate.classes):
        return {"told": f"knows {', '.join(candidate.classes)}; its error on {', '.join(corpus.classes)} is unknown"}
    answers = answers_of(Answer(f"text-{row}", 0, 0.0, text=text) for row, text in enumerate(test["text"]))
    frame = rated(answers, candidate, scoring, store=store).frame
    scores = frame[[f"{RATING}{name}" for name in corpus.classes]].to_numpy()
    return {"num_texts": len(test)} | _errors(test["label"].to_numpy(dtype=np.int64), scores)


def rater_table(raters: dict[str, Rater]) -> pd.DataFrame:
    """Return a row for each rater that was used, with its own error."""
    return pd.DataFrame([rater.facts for rater in raters.values()])


def _errors(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    guesses = scores.argmax(axis=1)
    measures: dict[str, Callable[[Any, Any], float]] = {
        "accuracy": accuracy_score,
        "balanced_accuracy": balanced_accuracy_score,
    }
    found = {name: float(measure(labels, guesses)) for name, measure in measures.items()}
    if scores.shape[1] == 2:
        found["auc"] = float(roc_auc_score(labels, scores[:, 1]))
    return found
