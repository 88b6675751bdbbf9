"""From items to the masked rows that a masked language model is asked about."""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked_rows import MaskedRow, Sight
from fairsisa.errors import ModelError

BLANK, SLOT = "BLANK", "[M]"
NO_DIFFERENCE = "no token differs on one side"
NOTHING_SHARED = "no token between the first and the last is shared"
WITHIN_WORD = ("left_to_right", "plain")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Question:
    """What is asked about one item: the rows of each of its options; with a `reason`, nothing, and why."""

    item: Item
    options: tuple[tuple[MaskedRow, ...], ...] = ()
    reason: str = ""

    @property
    def sights(self) -> Iterator[Sight]:
        """What a model sees, option by option."""
        return (row.sight for rows in self.options for row in rows)


@dataclass(frozen=True)
class Alignment:
    """Two sequences of token ids, and their positions that differ and that are shared (the latter in pairs)."""

    ids: tuple[tuple[int, ...], tuple[int, ...]]
    modified: tuple[tuple[int, ...], tuple[int, ...]] = field(default=((), ()))
    shared: tuple[tuple[int, ...], tuple[int, ...]] = field(default=((), ()))


def align(first: Sequence[int], second: Sequence[int]) -> Alignment:
    """Return which tokens two sequences share, as CrowS-Pairs' own code does (difflib over ids as words).

    The two are not treated alike by difflib: with another order, other tokens may count as modified.
    """
    pieces = [str(number) for number in first], [str(number) for number in second]
    modified: tuple[list[int], list[int]] = ([], [])
    shared: tuple[list[int], list[int]] = ([], [])
    for tag, start, stop, other_start, other_stop in difflib.SequenceMatcher(None, *pieces).get_opcodes():
        into = shared if tag == "equal" else modified
        into[0].extend(range(start, stop))
        into[1].extend(range(other_start, other_stop))
    return Alignment(
        (tuple(first), tuple(second)),
        modified=(tuple(modified[0]), tuple(modified[1])),
        shared=(tuple(shared[0]), tuple(shared[1])),
    )


def modified_questions(items: Sequence[Item], tokenizer: Any) -> list[Question]:
    """Return questions about the tokens in which an item's two sentences differ, each masked alone (bias-bench)."""
    return [_about(item, pair, pair.modified, NO_DIFFERENCE, tokenizer) for item, pair in _aligned(items, tokenizer)]


def unmodified_questions(items: Sequence[Item], tokenizer: Any, *, lower_case: bool) -> list[Question]:
    """Return questions about the tokens that two sentences share, the first and the last one left out (Nangia)."""
    pairs = _aligned(items, tokenizer, lower_case=lower_case)
    inner = ((item, pair, (pair.shared[0][1:-1], pair.shared[1][1:-1])) for item, pair in pairs)
    return [_about(item, pair, positions, NOTHING_SHARED, tokenizer) for item, pair, positions in inner]


def blank_questions(items: Sequence[Item], tokenizer: Any) -> list[Question]:
    """Return questions about the subwords of words that fill a blank, left to right (StereoSet as in bias-bench).

    For subword k, the blank holds the subwords before it and one mask. Words are stripped of punctuation; they are
    encoded after a space where the tokenizer marks the start of words by one.
    """
    before = " " if marks_word_starts(tokenizer) else ""
    faults = [_fault_of_blank(item) for item in items]
    words = [[option.translate(NO_PUNCTUATION) for option in item.options] for item in items]
    subwords = iter(_bare(tokenizer, [before + word for each in words for word in each]))
    steps = [[next(subwords) for _ in each] for each in words]
    texts = [
        item.context.replace(BLANK, tokenizer.decode(tokens[:place]) + tokenizer.mask_token)
        for item, options, fault in zip(items, steps, faults, strict=True)
        for tokens in options
        for place in range(0 if fault else len(tokens))
    ]
    filled = iter(_encoded(tokenizer, texts))
    return [
        _filling(item, options, fault, filled, tokenizer)
        for item, options, fault in zip(items, steps, faults, strict=True)
    ]


def whole_questions(items: Sequence[Item], tokenizer: Any, *, left_to_right: bool) -> list[Question]:
    """Return questions about every token of an option that follows the context.

    `left_to_right` masks with a token those after it in the same word too, so that a word's end does not give its
    beginning away (Kauf and Ivanova 2023, PLL-word-l2r); else each token is masked alone (Salazar et al. 2020).

    Raises:
        ModelError: when the tokenizer does not tell which letters a token stands for.
    """
    if not tokenizer.is_fast:
        raise ModelError("Expected a fast tokenizer, which tells the letters of each token; convert this one.")
    texts = [item.context + option for item in items for option in item.options]
    if not texts:
        return [Question(item, reason="no option") for item in items]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    numbers = iter(range(len(texts)))
    questions = []
    for item in items:
        options = []
        for number in [next(numbers) for _ in item.options]:
            ids, spans, words = (
                encoded["input_ids"][number],
                encoded["offset_mapping"][number],
                encoded.word_ids(number),
            )
            own = [
                place for place, word in enumerate(words) if word is not None and spans[place][1] > len(item.context)
            ]
            group = words if left_to_right else [*range(len(ids))]
            options.append(tuple(_row_of_word(ids, place, group, tokenizer) for place in own))
        questions.append(Question(item, tuple(options), _fault_of_options(options)))
    return questions


def slot_sight(item: Item, tokenizer: Any) -> Sight | str:
    """Return what a model sees of a context with the slot "[M]" masked, or the reason why there is nothing to see."""
    if item.context.count(SLOT) != 1:
        return f"expected one {SLOT} in the context, got {item.context.count(SLOT)}"
    ids = tokenizer(item.context.replace(SLOT, tokenizer.mask_token))["input_ids"]
    return Sight(tuple(ids), ids.index(tokenizer.mask_token_id))


def marks_word_starts(tokenizer: Any) -> bool:
    """Return whether a word after a space has other tokens than the same word at a text's beginning (RoBERTa)."""
    alone, after_space = _bare(tokenizer, ["house", " house"])
    return alone != after_space


def lowers_case(tokenizer: Any) -> bool:
    """Return whether a tokenizer takes capitals for small letters."""
    small, capital = _bare(tokenizer, ["house", "HOUSE"])
    return small == capital


def _aligned(items: Sequence[Item], tokenizer: Any, *, lower_case: bool = False) -> list[tuple[Item, Alignment]]:
    texts = [option.lower() if lower_case else option for item in items for option in _two_options(item)]
    encoded = _encoded(tokenizer, texts)
    return [(item, align(*encoded[2 * place : 2 * place + 2])) for place, item in enumerate(items)]


def _two_options(item: Item) -> tuple[str, ...]:
    if len(item.options) != 2:
        raise ValueError(f"Expected item {item.item_id!r} to have two sentences, got {len(item.options)}.")
    return item.options


def _about(
    item: Item, pair: Alignment, positions: tuple[tuple[int, ...], tuple[int, ...]], lack: str, tokenizer: Any
) -> Question:
    options = tuple(
        tuple(_row(ids, place, [place], tokenizer) for place in places)
        for ids, places in zip(pair.ids, positions, strict=True)
    )
    return Question(item, options, "" if all(options) else lack)


def _fault_of_blank(item: Item) -> str:
    count = item.context.count(BLANK)
    return "" if count == 1 else f"expected one {BLANK} in the context, got {count}"


def _fault_of_options(options: Sequence[Sequence[object]]) -> str:
    lacking = [place for place, each in enumerate(options) if not each]
    if not options:
        return "no option"
    return f"option {lacking[0]} holds no token" if lacking else ""


def _filling(item: Item, options: list[list[int]], fault: str, filled: Iterator[list[int]], tokenizer: Any) -> Question:
    """Return a question about a blank; `filled` yields the encoded contexts of all subwords, in order."""
    if fault:
        return Question(item, reason=fault)
    rows = []
    for tokens in options:
        contexts = [next(filled) for _ in tokens]
        sights = [Sight(tuple(ids), ids.index(tokenizer.mask_token_id)) for ids in contexts]
        rows.append(tuple(MaskedRow(sight, token) for sight, token in zip(sights, tokens, strict=True)))
    return Question(item, tuple(rows), _fault_of_options(rows))


def _row_of_word(ids: Sequence[int], place: int, words: Sequence[int | None], tokenizer: Any) -> MaskedRow:
    later = [other for other in range(place, len(ids)) if words[other] == words[place]]
    return _row(ids, place, later, tokenizer)


def _row(ids: Sequence[int], place: int, masked: Sequence[int], tokenizer: Any) -> MaskedRow:
    seen = list(ids)
    for each in masked:
        seen[each] = tokenizer.mask_token_id
    return MaskedRow(Sight(tuple(seen), place), ids[place])


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts))["input_ids"] if texts else []
    return ids


def _bare(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return ids
