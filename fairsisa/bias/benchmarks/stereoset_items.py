"""The items of StereoSet: what fills a blank, what follows a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fairsisa.bias.benchmark import Files
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.data.sources import SourceFile, github_url

BLANK = "BLANK"
OPTIONS = ("stereotype", "anti-stereotype", "unrelated")
INTRASENTENCE, INTERSENTENCE = "intrasentence", "intersentence"
ENDS = (".", "!", "?")
SOURCE = SourceFile(
    "stereoset/stereoset_source.json.gz",
    github_url("enjoeyland/unlearning_bias", "75670316d9a2e138b8a5d52e64c442160b701557", "data/stereoset.json"),
    "sha256:8cb492380ac3c7b59d208fe70337c7d673e595451cd8edbebd667088430ed116",
)

Test = Mapping[str, Mapping[str, Any]]
"""One test: for each of `OPTIONS`, an entry of the source (id, context, sentence, bias_type, target)."""


def load_stereoset(files: Files, task: str) -> ItemTable:
    """Return the tests of one task: "intrasentence" where the context has a blank, else "intersentence".

    Raises:
        DataError: when the file is missing.
        ChecksumError: when it is not the recorded one.
    """
    return triplets_of(json.loads(files.text(SOURCE)), task)


load_intrasentence = partial(load_stereoset, task=INTRASENTENCE)
load_intersentence = partial(load_stereoset, task=INTERSENTENCE)


def triplets_of(entries: Mapping[str, Sequence[Mapping[str, Any]]], task: str) -> ItemTable:
    """Return the tests of one task of a parsed source: for each of `OPTIONS`, entries with id, context and sentence.

    Options are whole sentences in the order of `OPTIONS`, the cluster is the target term. The context of an
    intersentence item ends in punctuation (a full stop where the source has none, as in the original code) and a
    space, so that an option follows it as it is.
    """
    tests: dict[str, dict[str, Mapping[str, Any]]] = {}
    for option in OPTIONS:
        for entry in entries[option]:
            tests.setdefault(entry["id"], {})[option] = entry
    makers = {INTRASENTENCE: _intrasentence, INTERSENTENCE: _intersentence}
    found = [makers[task](item_id, test) for item_id, test in tests.items() if _task(test) == task]
    return ItemTable(
        tuple(each for each in found if isinstance(each, Item)),
        tuple(each for each in found if isinstance(each, Malformed)),
    )


def _task(test: Test) -> str:
    return INTRASENTENCE if BLANK in next(iter(test.values()))["context"] else INTERSENTENCE


def _intrasentence(item_id: str, test: Test) -> Item | Malformed:
    item = _item(item_id, test, next(iter(test.values()))["context"].strip())
    if isinstance(item, Malformed):
        return item
    try:
        words_in_the_blank(item.context, item.options)
    except ValueError as fault:
        return Malformed(item_id, str(fault))
    return item


def _intersentence(item_id: str, test: Test) -> Item | Malformed:
    context = next(iter(test.values()))["context"].strip()
    if not context:
        return Malformed(item_id, "the context is empty")
    return _item(item_id, test, f"{context} " if context.endswith(ENDS) else f"{context}. ")


def _item(item_id: str, test: Test, context: str) -> Item | Malformed:
    missing = [option for option in OPTIONS if option not in test]
    if missing:
        return Malformed(item_id, f"no {missing[0]} sentence")
    sentences = tuple(test[option]["sentence"].strip() for option in OPTIONS)
    if not all(sentences):
        return Malformed(item_id, f"the {OPTIONS[sentences.index('')]} sentence is empty")
    first = test[OPTIONS[0]]
    return Item(item_id, context, sentences, first["target"], {"bias_type": first["bias_type"]})


def words_in_the_blank(context: str, sentences: Sequence[str]) -> tuple[str, ...]:
    """Return what stands in each sentence where the context has its blank.

    It is whatever lies between the context's two ends, letter case aside. In 2,100 of the public development set's
    2,104 tests with one blank this is the word that bias-bench takes (the one at the blank's place, without
    punctuation); in the other 4 the blank touches a letter or another sentence, and bias-bench takes too much.

    Raises:
        ValueError: saying why, when the context has not one blank, or does not surround a word of each sentence.
    """
    if context.count(BLANK) != 1:
        raise ValueError(f"the context has {context.count(BLANK)} blanks, not one")
    before, _, after = context.partition(BLANK)
    return tuple(_word(before, after, sentence) for sentence in sentences)


def _word(before: str, after: str, sentence: str) -> str:
    matches = sentence.lower().startswith(before.lower()) and sentence.lower().endswith(after.lower())
    if not matches or len(sentence) < len(before) + len(after):
        raise ValueError("a sentence does not match its context")
    word = sentence[len(before) : len(sentence) - len(after)].strip()
    if not any(letter.isalnum() for letter in word):
        raise ValueError("nothing stands where the blank is")
    return word


def filled_with_words(items: Sequence[Item]) -> list[Item]:
    """Return intrasentence items whose options are the words that fill the blank, not whole sentences."""
    return [replace(item, options=words_in_the_blank(item.context, item.options)) for item in items]
