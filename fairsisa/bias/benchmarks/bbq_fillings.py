"""Which names and words fill BBQ's templates, drawn as its authors drew them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fairsisa.bias.benchmarks.bbq_templates import Filling, Person, Row, four_questions, stereotyped_groups

CONTRASTED = ("Race_ethnicity", "Religion", "Nationality", "Sexual_orientation")
"""Categories that pair a word of a stereotyped group with one of no such group, in both orders."""
CROSSED = ("Race_x_gender", "Race_x_SES")
UNKNOWN_ANSWERS = (
    "Unknown",
    "Cannot be determined",
    "Can't be determined",
    "Not answerable",
    "Not known",
    "Not enough info",
    "Not enough information",
    "Cannot answer",
    "Can't answer",
    "Undetermined",
)
FEW, FIRST_NAMES = 5, 6

Each = TypeVar("Each")
Pair = tuple[Person, Person]


@dataclass(frozen=True)
class Vocabulary:
    """The words (`vocabulary.csv`) and proper names (`vocabulary_proper_names.csv`) that fill templates."""

    words: tuple[Row, ...]
    names: tuple[Row, ...]

    def of_category(self, category: str, kind: str = "") -> list[Row]:
        """Return the words of a category, of one kind if named, without those that the authors left out."""
        rows = (row for row in self.words if row["Category"] == category and row["Pilot_include"] != "No")
        return [row for row in rows if kind in ("", row["SubCat"])]

    def first_names(self, kind: str, *, ethnicities: Sequence[str] | None = None, gender: str = "") -> list[Row]:
        """Return first names: kind `first` tells an ethnicity, `first_only` does not."""
        rows = (row for row in self.names if row["First_last"] == kind and gender in ("", row["gender"]))
        return [row for row in rows if ethnicities is None or row["ethnicity"] in ethnicities]

    def ethnicities(self, *, without: Sequence[str]) -> list[str]:
        """Return the ethnicities of the first names that tell one, but for some."""
        known = dict.fromkeys(row["ethnicity"] for row in self.first_names("first"))
        return [each for each in known if each not in without]

    def surnames(self, ethnicity: str) -> list[str]:
        """Return the surnames of an ethnicity."""
        return [row["Name"] for row in self.names if row["First_last"] == "last" and row["ethnicity"] == ethnicity]


def generate(category: str, templates: Sequence[Row], vocabulary: Vocabulary, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a category's questions in the shape of the published JSON Lines files, a pure function of the seed.

    Follows the authors' generator (Parrish et al. 2022, section 3): words and names of at most five of a stereotyped
    group and five others, all pairs, both orders where groups are contrasted, four questions a pair. The published
    files are one draw of an unrecorded seed, so which words were drawn differs from theirs; what a template can give,
    and how many questions it gives, does not. Departures, all in what is told of an answer, none in a text: its group
    comes from the slot it names, where the authors search it for the name (which takes "African American" for
    "African") and hand a slot's group to the other slot when they reverse proper names; and a crossed question tells
    the stereotyped second group (`stereotyped_second`). Wealth words are drawn for each pair, not once a template.
    """
    rng = np.random.default_rng([seed, *category.encode()])
    questions: list[dict[str, Any]] = []
    for template in templates:
        for filling in fillings(category, template, vocabulary, rng):
            unknown = UNKNOWN_ANSWERS[int(rng.integers(len(UNKNOWN_ANSWERS)))]
            order = rng.permutation(3).tolist()
            start = len(questions)
            questions += four_questions(category, template, filling, unknown=unknown, order=order, start=start)
    return questions


def fillings(category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator) -> Iterator[Filling]:
    """Yield what fills a template, pair by pair; nothing for an empty template or one whose second list is lost."""
    if not template["Ambiguous_Context"]:
        return
    both_orders = (
        category in (*CONTRASTED, *CROSSED) or is_named(template) or template.get("Subcategory") == "Occupation"
    )
    for first, second, contrast in _pairs(category, template, vocabulary, rng):
        word_1, word_2 = (_one(words, rng) for words in word_lists(template["Lexical_diversity"]))
        filling = Filling(first, second, word_1, word_2, contrast)
        yield filling
        if both_orders:
            yield filling.reversed


def is_named(template: Row) -> bool:
    """Return whether a template is filled with proper names."""
    return template.get("Proper_nouns_only") == "TRUE"


def has_lists(category: str, template: Row) -> bool:
    """Return whether a template lists the words that fill its two slots."""
    return category not in CROSSED and len(template.get("Names", "")) > 1


def word_lists(text: str) -> tuple[list[str], list[str]]:
    """Return the words for slot 1 and for slot 2 out of "WORD1: [a, b]; WORD2: [c, d]".

    As the authors read it: the second list counts only where it comes last. So two templates of Disability_status (4b
    and 19b) give no question, there as here.
    """
    lists: list[list[str]] = [[], []]
    for part in text.split(";"):
        lists[1] = []
        slot = re.search(r"(?:NAME|WORD)([12])", part)
        if slot is not None:
            words = part[slot.end() :].lstrip("}").lstrip(":").strip().replace("[", "").replace("]", "")
            lists[int(slot[1]) - 1] = [word.strip() for word in words.split(",")]
    return lists[0], lists[1]


def _pairs(
    category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator
) -> Iterator[tuple[Person, Person, str]]:
    if category in CROSSED:
        yield from _crossed_pairs(category, template, vocabulary, rng)
        return
    if is_named(template):
        pairs = _ethnic_pairs(template, vocabulary, rng) if category == "Race_ethnicity" else None
        pairs = pairs or _first_name_pairs(category, vocabulary, rng)
    elif has_lists(category, template):
        pairs = _listed_pairs(template)
    elif category in CONTRASTED:
        pairs = _contrasted_pairs(category, template, vocabulary, rng)
    else:
        pairs = _word_pairs(category, template, vocabulary, rng)
    for first, second in pairs:
        yield first, second, ""


def _listed_pairs(template: Row) -> Iterator[Pair]:
    firsts, seconds = word_lists(template["Names"])
    for first in firsts:
        for second in seconds:
            yield Person(first), Person(second)


def _contrasted_pairs(category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator) -> Iterator[Pair]:
    rows = vocabulary.of_category(category)
    targets = stereotyped_groups(template)
    for row in _few([row for row in rows if row["Name"] in targets], rng):
        for other in _few([row for row in rows if row["Name"] not in targets], rng):
            yield Person(row["Name"], row["Info"]), Person(other["Name"], other["Info"])


def _word_pairs(category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator) -> Iterator[Pair]:
    """Pair a few words of one kind with each other; occupations with all of the other status."""
    rows = vocabulary.of_category(category, template.get("Subcategory", ""))
    drawn = _few(rows, rng)
    for row in drawn:
        others = [other for other in rows if other["Info"] != row["Info"]] if category == "SES" else drawn
        for other in others:
            if other is not row:
                yield Person(row["Name"], row["Info"]), Person(other["Name"], other["Info"])


def _first_name_pairs(category: str, vocabulary: Vocabulary, rng: np.random.Generator) -> Iterator[Pair]:
    """Pair first names that tell no ethnicity: women's with men's where gender is the category."""
    if category == "Gender_identity":
        for row in _few(vocabulary.first_names("first_only", gender="F"), rng):
            for other in _few(vocabulary.first_names("first_only", gender="M"), rng):
                yield Person(row["Name"], row["gender"]), Person(other["Name"], other["gender"])
        return
    drawn = _few(vocabulary.first_names("first_only"), rng, FIRST_NAMES)
    for row in drawn:
        for other in drawn:
            if other is not row:
                yield Person(row["Name"]), Person(other["Name"])


def _ethnic_pairs(template: Row, vocabulary: Vocabulary, rng: np.random.Generator) -> Iterator[Pair]:
    """Pair full names of a stereotyped ethnicity with others of the same gender."""
    targets = stereotyped_groups(template)
    for row in _few(vocabulary.first_names("first", ethnicities=targets), rng):
        first = _full_name(row, vocabulary, rng)
        others = vocabulary.ethnicities(without=targets)
        for other in _few(vocabulary.first_names("first", ethnicities=others, gender=row["gender"]), rng):
            yield first, _full_name(other, vocabulary, rng)


def _crossed_pairs(
    category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator
) -> Iterator[tuple[Person, Person, str]]:
    """Pair a target with who differs from it in (a) gender or status, (b) race, (c) both."""
    target = template["Known_stereotyped_var2"]
    other = {"M": "F", "F": "M", "lowSES": "highSES", "highSES": "lowSES"}[target]
    sides = (target, other, target, other)
    tells_gender = is_named(template) and category == "Race_x_gender"
    quadruples = _crossed_names if is_named(template) else _crossed_labels
    for people in quadruples(category, template, vocabulary, rng):
        seconds = {} if tells_gender else _second_words(category, template, vocabulary, rng)
        first, *rest = (
            Person(who.word, who.group if tells_gender else f"{side}-{who.group}", seconds.get(side))
            for who, side in zip(people, sides, strict=True)
        )
        for contrast, second in zip("abc", rest, strict=True):
            yield first, second, f"intersectional_{contrast}"


def _crossed_labels(
    category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator
) -> Iterator[tuple[Person, ...]]:
    words = [row["Name"] for row in vocabulary.of_category("Race_ethnicity")]
    targets = stereotyped_groups(template)
    for word in _few([word for word in words if word in targets], rng):
        own = Person(word, word)
        for other in _few([word for word in words if word not in targets], rng):
            yield own, own, Person(other, other), Person(other, other)


def _crossed_names(
    category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator
) -> Iterator[tuple[Person, ...]]:
    """Yield full names: the target's, and of those in (a), (b) and (c); where status differs, (c) is (b)."""
    targets = stereotyped_groups(template)
    by_gender = category == "Race_x_gender"
    stated = template["Known_stereotyped_var2"] if by_gender else template["Stated_gender_info"]
    for row in _few(vocabulary.first_names("first", ethnicities=targets, gender=stated), rng):
        own = _full_name(row, vocabulary, rng)
        same, gender, opposite = [row["ethnicity"]], row["gender"], "F" if row["gender"] == "M" else "M"
        others = vocabulary.ethnicities(without=same if by_gender else targets)
        wanted = [(same, opposite if by_gender else gender), (others, gender), (others, opposite)]
        names = [vocabulary.first_names("first", ethnicities=some, gender=sex) for some, sex in wanted]
        drawn = [_few([each for each in known if each is not row], rng) for known in names]
        for first, second, third in zip(*drawn, strict=True):
            people = [_full_name(each, vocabulary, rng) for each in (first, second, third if by_gender else second)]
            yield own, people[0], people[1], people[2] if by_gender else people[1]


def _second_words(category: str, template: Row, vocabulary: Vocabulary, rng: np.random.Generator) -> dict[str, str]:
    """Return what fills GEN or OCC for each side: the template's own words, else occupations of that status."""
    if len(template["Names"]) > 1:
        told = dict(zip(json.loads(template["Var2_info"]), json.loads(template["Names"]), strict=True))
        return {side: words if isinstance(words, str) else _one(words, rng) for side, words in told.items()}
    rows = vocabulary.of_category("SES")
    return {side: _one([row["Name"] for row in rows if row["Info"] == side], rng) for side in ("lowSES", "highSES")}


def _full_name(row: Row, vocabulary: Vocabulary, rng: np.random.Generator) -> Person:
    surname = _one(vocabulary.surnames(row["ethnicity"]), rng)
    return Person(f"{row['Name']} {surname}", f"{row['gender']}-{row['ethnicity']}")


def _few(rows: Sequence[Each], rng: np.random.Generator, most: int = FEW) -> list[Each]:
    """Return at most `most` of some rows, drawn without replacement; all, in their order, if there are no more."""
    if len(rows) <= most:
        return list(rows)
    return [rows[int(place)] for place in rng.choice(len(rows), size=most, replace=False)]


def _one(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))] if words else ""
