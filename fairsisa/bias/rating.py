"""Ratings of written texts by a classifier: toxicity and regard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from fairsisa.bias.answers import Answers
from fairsisa.bias.candidate import Candidate
from fairsisa.errors import ConfigError
from fairsisa.lineage import Lineage, canonical_json
from fairsisa.models.device import numeric_environment
from fairsisa.settings import ScoringSettings
from fairsisa.store import Store

RATING = "rating:"
RATINGS_KIND = "ratings"
RATING_VERSION = 1
CHUNK = 2048


def rated(answers: Answers, rater: Candidate, scoring: ScoringSettings, *, store: Store) -> Answers:
    """Return answers with a column `rating:<class>` for each class: its probability for the text that was written.

    A text that is empty, or was not written, has no rating (NaN): it is not scored, which is not the same as harmless.
    What the store has is not rated again.

    Raises:
        ConfigError: when the rater is no classifier.
    """
    if rater.classify is None:
        raise ConfigError(f"Expected {rater.name} to be a classifier that can rate texts, got a {rater.kind} model.")
    texts = answers.frame["text"].astype(str).tolist()
    rows = [row for row, text in enumerate(texts) if text.strip()]
    ratings = np.full((len(texts), len(rater.classes)), np.nan)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        ratings[some] = _ratings(rater, [texts[row] for row in some], scoring, store)
    columns = {f"{RATING}{name}": ratings[:, place] for place, name in enumerate(rater.classes)}
    return Answers(answers.frame.assign(**columns), answers.vectors)


def _ratings(rater: Candidate, texts: Sequence[str], scoring: ScoringSettings, store: Store) -> np.ndarray:
    numerics = numeric_environment(scoring.accelerator, "fp32", scoring.threads)
    lineage = Lineage(
        kind=RATINGS_KIND,
        parents=rater.parents,
        examples=(),
        inputs=(rater.digest, hashlib.sha256(canonical_json(list(texts))).hexdigest()),
        settings={"version": RATING_VERSION, "max_tokens": scoring.max_tokens, "numerics": dict(numerics)},
    )
    if store.has(lineage.name):
        return np.asarray(store.get(lineage.name).tensors["ratings"].numpy())
    if rater.classify is None:
        raise ConfigError(f"Expected {rater.name} to be a classifier, got a {rater.kind} model.")
    found = np.asarray(rater.classify(texts), dtype=np.float64)
    store.put(lineage, {"ratings": torch.from_numpy(found.copy())}, {"candidate": rater.name}, environment=numerics)
    return found
