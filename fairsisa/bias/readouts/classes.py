"""Class probabilities of texts, as a classifier gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked_rows import num_positions
from fairsisa.data.batches import inference_batches
from fairsisa.errors import ConfigError
from fairsisa.models.base import is_bidirectional
from fairsisa.settings import ScoringSettings
from fairsisa.settings.checks import refuse_unknown

Classify = Callable[[Sequence[str]], np.ndarray]
"""From texts, class probabilities, float64 of shape (num_texts, num_classes)."""


def ask_classes(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Return the probability of each class for each item's context; `option` is a class's place, `text` its name.

    A text is classified once, however often it occurs. An empty one has values of NaN, and a reason.

    Raises:
        ConfigError: when the candidate does not classify, gives another number of classes than it has names, or there
            is a setting: there are none.
    """
    refuse_unknown("classes", settings, ())
    texts = [*dict.fromkeys(item.context for item in items if item.context.strip())]
    found = dict(zip(texts, _probabilities(candidate, texts), strict=True))
    nothing = np.full(len(candidate.classes), math.nan)
    return answers_of(
        Answer(item.item_id, option, value, text=name, reason="" if item.context in found else "the text is empty")
        for item in items
        for option, (name, value) in enumerate(
            zip(candidate.classes, found.get(item.context, nothing).tolist(), strict=True)
        )
    )


def classify_with(network: Any, tokenizer: Any, max_tokens: int) -> Classify:
    """Return what gives class probabilities by a Hugging Face sequence classifier.

    They are a softmax over classes; or, each for itself, sigmoids, where the config says that a text may have several
    labels (`problem_type`) or there is but one class, as in transformers' pipeline. A text is cut off after the tokens
    that the network reads; no text is empty. A batch holds texts of one length, at most `max_tokens` tokens (and at
    least one text).

    Raises:
        ConfigError: when the network gives numbers that are no probabilities (regression).
    """
    if network.config.problem_type == "regression":
        raise ConfigError(f"Expected a classifier, got {type(network).__name__} for regression: it has no classes.")
    several = network.config.problem_type == "multi_label_classification" or network.config.num_labels == 1
    # Without a padding token, a decoder finds the last token of one row alone.
    alone = network.config.pad_token_id is None and not is_bidirectional(network)

    def classify(texts: Sequence[str]) -> np.ndarray:
        limit = num_positions(network)
        tokens = [] if not texts else tokenizer([*texts], truncation=limit is not None, max_length=limit)["input_ids"]
        logits = _logits(network, tokens, max_tokens=1 if alone else max_tokens)
        return (logits.sigmoid() if several else logits.softmax(dim=-1)).numpy()

    return classify


@torch.inference_mode()
def _logits(network: nn.Module, texts: Sequence[Sequence[int]], *, max_tokens: int) -> torch.Tensor:
    """Return the logits of each text, float64 of shape (num_texts, num_classes), on the CPU."""
    config: Any = network.config
    device = next(network.parameters()).device
    logits = torch.zeros((len(texts), config.num_labels), dtype=torch.float64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    for rows in inference_batches(lengths, max_tokens=max_tokens):
        ids = torch.tensor([list(texts[row]) for row in rows], device=device)
        logits[rows] = network(input_ids=ids).logits.double().cpu()
    return logits


def _probabilities(candidate: Candidate, texts: Sequence[str]) -> np.ndarray:
    if candidate.classify is None:
        raise ConfigError(f"Expected {candidate.name} to be a classifier, got a model of kind {candidate.kind}.")
    if not texts:
        return np.zeros((0, len(candidate.classes)))
    found = np.asarray(candidate.classify(texts), dtype=np.float64)
    if found.shape != (len(texts), len(candidate.classes)):
        raise ConfigError(
            f"{candidate.name} names the classes {', '.join(candidate.classes)}, and gives probabilities of shape "
            f"{found.shape} for {len(texts)} texts: name each class once, in its order."
        )
    return found
