"""A quick test of whether a model has learnt anything at all: a random network looks perfectly fair."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import by_item
from fairsisa.bias.candidate import CAUSAL, MASKED, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.causal import ask_sentences
from fairsisa.bias.readouts.masked import ask_pseudo_likelihood
from fairsisa.bias.statistics import wilson_interval
from fairsisa.settings import ScoringSettings

LEVEL, SMALLEST_SPREAD = 0.99, 1e-4
SENTENCES = (
    "The little dog ran to the big tree and sat down in the shade.",
    "Her mother said that it was time to go to bed.",
    "They went to the park and played with a red ball.",
    "The sun was warm and the sky was very blue.",
    "He opened the door and looked into the room.",
    "The cat was hungry, so she asked for some milk.",
    "One day a boy found a small box in the garden.",
    "She was happy because her friend came to see her.",
    "The bird sang a song at the top of the tree.",
    "We had to wait for the bus in the rain.",
    "He put his hat on the table and went away.",
    "The water in the lake was cold and clear.",
    "My father gave me a book about the sea.",
    "The old man lived in a house near the river.",
    "She wanted to eat the cake, but it was too hot.",
    "The children were tired after the long walk home.",
    "It was the first day of the new year.",
    "They could not find the key to the door.",
    "The girl took her bag and went to school.",
    "The train was late, and many people were waiting.",
    "He told his brother a story about a brave mouse.",
    "The flowers in the garden were yellow and white.",
    "She washed her hands before she sat down to eat.",
    "The car stopped in front of the big white house.",
    "After the rain, the grass was wet and green.",
    "The teacher asked the class to be quiet.",
    "He was so tired that he fell asleep in his chair.",
    "The moon was bright, and the night was still.",
    "She did not know where to look for her shoes.",
    "The baker made bread for the whole town.",
    "A small boat was on its way across the lake.",
    "They were glad to be home at the end of the day.",
)
"""Plain sentences of our own, which a model of English prefers to their words in another order."""


@dataclass(frozen=True)
class Capability:
    """Whether a model passes, None if it was not checked.

    `share` is that of the sentences (or texts) which it tells apart, of `total`; `told` says it in words.
    """

    passed: bool | None
    share: float
    total: int
    told: str


def check_capability(candidate: Candidate, scoring: ScoringSettings) -> Capability:
    """Return whether a model has learnt anything.

    A language model is to find plain English sentences likelier than the same ones with their inner words in a random
    order, more often than by chance (99 % Wilson interval above one half). A classifier that gives
    different texts the same answer fails; whether another one has learnt anything, only texts with a key can tell.
    """
    if candidate.kind in (MASKED, CAUSAL):
        return _of_language(candidate, scoring)
    if candidate.classify is not None:
        return _of_classifier(candidate.classify)
    return Capability(None, float("nan"), 0, "not checked: the model predicts neither words nor classes")


def shuffled_items() -> tuple[Item, ...]:
    """Return an item a sentence: the sentence, then its inner words in another order, the same on every call."""
    return tuple(
        Item(f"sentence-{number}", "", (sentence, _shuffled(sentence)), f"sentence-{number}")
        for number, sentence in enumerate(SENTENCES)
    )


def _of_language(candidate: Candidate, scoring: ScoringSettings) -> Capability:
    ask = ask_sentences if candidate.kind == CAUSAL else ask_pseudo_likelihood
    items = shuffled_items()
    answers = ask(candidate, items, replace(scoring, precision="fp32", cache_bits=None), {})
    wins = _preferred(items, answers)
    low, _ = wilson_interval(wins, len(items), LEVEL)
    told = f"prefers {wins} of {len(items)} sentences to their words in random order"
    passed = low > 0.5
    return Capability(passed, wins / len(items), len(items), told if passed else f"no better than chance: {told}")


def _of_classifier(classify: Callable[[Sequence[str]], np.ndarray]) -> Capability:
    scores = classify(SENTENCES)
    spread = float(np.ptp(scores, axis=0).max())
    different = len(np.unique(scores.round(6), axis=0))
    told = f"{different} different answers to {len(SENTENCES)} texts, up to {spread:.2g} apart"
    if spread > SMALLEST_SPREAD:  # a random head may differ as much: only texts with a key can tell
        return Capability(None, different / len(SENTENCES), len(SENTENCES), f"not checked without a key: {told}")
    return Capability(False, different / len(SENTENCES), len(SENTENCES), f"always the same: {told}")


def _preferred(items: Sequence[Item], answers: Answers) -> int:
    wins = 0
    for _, rows in by_item(items, answers):
        values = rows.set_index("option")["value"]
        wins += bool(values.loc[0] > values.loc[1])
    return wins


def _shuffled(sentence: str) -> str:
    """Return a sentence with its inner words in another order: of equal words, so that knowing these is not enough."""
    first, *inner, last = sentence.split()
    draw, order = random.Random(hashlib.sha256(sentence.encode()).digest()), list(inner)
    while order == inner:
        draw.shuffle(order)
    return " ".join([first, *order, last])
