"""BBQ's questions as its templates give them: slots filled, language corrected, four questions a filling."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairsisa.errors import DataError

Row = Mapping[str, str]
SLOT = re.compile(r"\{\{(?:NAME|GEN|OCC)([12])\}\}")
NEGATIVE, OTHER, UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class Person:
    """Who fills slot 1 or 2 of a template: a name or word, its group, and what fills GEN or OCC beside it."""

    word: str
    group: str = ""
    second: str | None = None


@dataclass(frozen=True)
class Filling:
    """What fills a template: persons in the order of its slots, two other words, the contrast of a crossed one."""

    first: Person
    second: Person
    word_1: str = ""
    word_2: str = ""
    contrast: str = ""

    @property
    def reversed(self) -> Filling:
        """The filling with its persons in each other's slot."""
        return Filling(self.second, self.first, self.word_1, self.word_2, self.contrast)


def filled(text: str, filling: Filling) -> str:
    """Return a template's text with its slots filled, and the language corrected as the authors correct it.

    "a" becomes "an" before a vowel only where a word that was filled in begins with one, as in the published texts.
    """
    persons = (filling.first, filling.second)
    for slot, person in enumerate(persons, start=1):
        text = text.replace(f"{{{{NAME{slot}}}}}", person.word)
        if person.second is not None:
            text = text.replace(f"{{{{GEN{slot}}}}}", person.second).replace(f"{{{{OCC{slot}}}}}", person.second)
    if filling.word_1:
        text = text.replace("{{WORD1}}", filling.word_1).replace("{{WORD2}}", filling.word_2)
    text = text.replace("lesbian man", "lesbian woman").replace("Latino woman", "Latina woman")
    if any(word[:1].lower() in tuple("aeiou") for person in persons for word in (person.word, person.second or "")):
        text = re.sub(r"(\s[aA])(\s[aAeEiIoOuU])", r"\1n\2", text).replace(" an European", " a European")
    return text


def four_questions(
    category: str, template: Row, filling: Filling, *, unknown: str, order: Sequence[int], start: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield a filled template's questions in the shape of the published files, the ids from `start`.

    The negative question comes first, then the other; each is asked under the ambiguous context, then under the clear
    one. `unknown` is the third answer; `order` says which of (negative, other, unknown) stands at each place.
    """
    answers = [filled(template[name], filling) for name in ("Answer_negative", "Answer_non_negative")] + [unknown]
    told = [*answer_groups(template, filling), [unknown, "unknown"]]
    ambiguous = filled(template["Ambiguous_Context"], filling).strip()
    clear = f"{ambiguous} {filled(template['Disambiguating_Context'], filling)}".strip()
    known = _metadata(template, filling)
    asked = (("neg", "Question_negative_stereotype", NEGATIVE), ("nonneg", "Question_non_negative", OTHER))
    for polarity, column, right in asked:
        question = filled(template[column], filling).strip()
        for condition, context, key in (("ambig", ambiguous, UNKNOWN), ("disambig", clear, right)):
            yield {
                "example_id": start,
                "question_index": template["Q_id"],
                "question_polarity": polarity,
                "context_condition": condition,
                "category": category,
                "answer_info": {f"ans{place}": told[which] for place, which in enumerate(order)},
                "additional_metadata": known,
                "context": context,
                "question": question,
                **{f"ans{place}": answers[which] for place, which in enumerate(order)},
                "label": list(order).index(key),
            }
            start += 1


def answer_groups(template: Row, filling: Filling) -> list[list[str]]:
    """Return [who, group] of the negative answer and of the other, told by the slot that each names.

    What a template says of a slot belongs to the slot, what fills it brings its own: "trans" and "F" give "trans_F".

    Raises:
        DataError: when neither answer names a slot, or both name the same one.
    """
    slots = [set(SLOT.findall(template[name])) for name in ("Answer_negative", "Answer_non_negative")]
    negative = next(
        (slot for slot in "12" if slots[0] == {slot} or (not slots[0] and {slot} == {"1", "2"} - slots[1])), None
    )
    if negative is None or slots[1] not in (set(), {"1", "2"} - {negative}):
        raise DataError(f"Expected the answers of template {template['Q_id']} to name one slot each, got {slots}.")
    persons = {"1": filling.first, "2": filling.second}
    return [_told(template, slot, persons[slot]) for slot in (negative, "2" if negative == "1" else "1")]


def stereotyped_groups(template: Row) -> list[str]:
    """Return the groups that a template's stereotype is about; of a crossed one, the races."""
    known = template.get("Known_stereotyped_groups") or template.get("Known_stereotyped_race") or "[]"
    return [str(group) for group in json.loads(known)]


def _told(template: Row, slot: str, person: Person) -> list[str]:
    who = person.word if person.second is None else f"{person.word} {person.second}"
    groups = (template.get(f"NAME{slot}_info", ""), person.group)
    return [who, "_".join(group for group in groups if group) or person.word]


def _metadata(template: Row, filling: Filling) -> dict[str, Any]:
    known = {
        "subcategory": filling.contrast or template.get("Subcategory") or "None",
        "stereotyped_groups": stereotyped_groups(template),
        "version": template.get("version", "None"),
        "source": filled(template["Notes"], filling),
    }
    second = template.get("Known_stereotyped_var2")
    return known | ({"stereotyped_second": second} if second else {})
