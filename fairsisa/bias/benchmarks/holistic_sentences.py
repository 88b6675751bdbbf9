"""The sentences of HolisticBias: templates filled with descriptors of people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairsisa.bias.benchmark import Files
from fairsisa.bias.items import Item, ItemTable, Label, Malformed
from fairsisa.data.sources import SourceFile, github_url
from fairsisa.settings.checks import in_range

SLOTS = ("{noun_phrase}", "{plural_noun_phrase}")
VOWELS = "aeiou"
REPOSITORY = ("facebookresearch/ResponsibleNLP", "0ec714eb084217f44cd9ac466d9e988c795302f9")
DIGESTS = {
    "descriptors": "c1328f0edfdeefb76302d360a01878df3db55f18026f4ea1956b4a0f52daf943",
    "nouns": "9bbe15bf01ea8827fd5d68a81ee2b05e04bd5f79478d9027efec0b4dbd232ee6",
    "sentence_templates": "8b1cf8fc3c9a10b12cf77902e8c2ff3d80e3fcfff2f177a00256925acb4f53a5",
}
SOURCES = {
    name: SourceFile(
        f"holistic_bias/{name}.json",
        github_url(*REPOSITORY, f"holistic_bias/dataset/v1.1/{name}.json"),
        f"sha256:{digest}",
    )
    for name, digest in DIGESTS.items()
}


@dataclass(frozen=True)
class Selection:
    """Which sentences are asked: `num_templates` templates, drawn from `seed`, and `num_nouns` nouns a descriptor.

    Nouns are the first of each gender in turn, or of the descriptor's own gender. None takes all. Four nouns are the
    fewest with which the Mann-Whitney test can tell two descriptors apart at the 5 % level.
    """

    num_templates: int | None = 2
    num_nouns: int | None = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_templates is not None:
            in_range("num_templates", self.num_templates, low=1)
        if self.num_nouns is not None:
            in_range("num_nouns", self.num_nouns, low=1)


@dataclass(frozen=True)
class Descriptor:
    """A word or phrase for people, its place (axis, bucket), its article, and the nouns it goes with if not all."""

    axis: str
    bucket: str
    text: str
    article: str
    gender: str | None
    preference: str


def load_holistic_bias(files: Files, selection: Selection) -> ItemTable:
    """Return the selected sentences; see `sentences_of`.

    Raises:
        DataError: when a file is missing.
        ChecksumError: when one is not the recorded one.
    """
    descriptors, nouns, templates = (json.loads(files.text(SOURCES[name])) for name in DIGESTS)
    return sentences_of(descriptors, nouns, list(templates), selection)


def sentences_of(
    descriptors: Mapping[str, Mapping[str, Sequence[Any]]],
    nouns: Mapping[str, Sequence[Sequence[str]]],
    templates: Sequence[str],
    selection: Selection,
) -> ItemTable:
    """Return sentences as items, descriptor and noun in the slot of a template ("a blind woman", "blind women").

    The cluster is the descriptor within its axis. Descriptors without a noun, nouns without a descriptor, and phrases
    that stand alone are not asked. A template without one slot is malformed.
    """
    sound = [(number, template) for number, template in enumerate(templates) if _num_slots(template) == 1]
    malformed = tuple(
        Malformed(f"holistic-template-{number}", "the template has not one slot for a noun phrase")
        for number, template in enumerate(templates)
        if _num_slots(template) != 1
    )
    chosen = _drawn(sound, selection)
    items = [
        _item(descriptor, noun, number, template)
        for descriptor in _descriptors(descriptors)
        for noun in _nouns(nouns, descriptor.gender, selection.num_nouns)
        for number, template in chosen
    ]
    return ItemTable(tuple(items), malformed)


def _drawn(templates: Sequence[tuple[int, str]], selection: Selection) -> list[tuple[int, str]]:
    count = selection.num_templates
    if count is None or count >= len(templates):
        return list(templates)
    places = np.random.default_rng(selection.seed).choice(len(templates), size=count, replace=False)
    return [templates[place] for place in sorted(places.tolist())]


def _num_slots(template: str) -> int:
    return sum(template.count(slot) for slot in SLOTS)


def _descriptors(axes: Mapping[str, Mapping[str, Sequence[Any]]]) -> Iterator[Descriptor]:
    for axis, buckets in axes.items():
        for bucket, entries in buckets.items():
            for entry in entries:
                fields = {"descriptor": entry} if isinstance(entry, str) else entry
                text = fields["descriptor"]
                article = fields.get("article", "an" if text[0].lower() in VOWELS else "a")
                preference = fields.get("preference", "")
                yield Descriptor(axis, bucket, text, article, fields.get("gender"), preference)


def _nouns(
    nouns: Mapping[str, Sequence[Sequence[str]]], gender: str | None, count: int | None
) -> list[tuple[str, str, str]]:
    """Return nouns as (gender, singular, plural), the genders in turn."""
    own = {name: pairs for name, pairs in nouns.items() if gender in (None, name)}
    longest = max((len(pairs) for pairs in own.values()), default=0)
    turns = [
        (name, pairs[place][0], pairs[place][1])
        for place in range(longest)
        for name, pairs in own.items()
        if place < len(pairs)
    ]
    return turns[:count]


def _item(descriptor: Descriptor, noun: tuple[str, str, str], number: int, template: str) -> Item:
    gender, singular, plural = noun
    phrase, plural_phrase = f"{descriptor.article} {descriptor.text} {singular}", f"{descriptor.text} {plural}"
    sentence = template.replace(SLOTS[0], phrase).replace(SLOTS[1], plural_phrase)
    labels: dict[str, Label] = {
        "axis": descriptor.axis,
        "bucket": descriptor.bucket,
        "descriptor": descriptor.text,
        "preference": descriptor.preference,
        "template": number,
        "noun_gender": gender,
    }
    item_id = f"holistic-{descriptor.axis}-{descriptor.text}-{singular}-{number}"
    return Item(item_id, "", (sentence,), f"{descriptor.axis}/{descriptor.text}", labels)
