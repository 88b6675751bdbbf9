"""How rows of multiple-choice data become prompts with options, worded as lm-eval words them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairsisa.bias.items import Label
from fairsisa.errors import DataError

LETTERS = "ABCDE"
SHARED = "shared_characters"
"""The label that holds how many characters at the end of all options are one text, the same for each."""
SHOTS_FROM, SHOTS_TO = "shots_from", "shots_to"
"""The labels that hold where in the context the solved examples lie."""


@dataclass(frozen=True)
class Prompt:
    """A question as it is put: what comes first, the options with their leading space, and the right one's place.

    Raises:
        DataError: when there are not two options, one is empty, or the key is outside of them.
    """

    context: str
    options: tuple[str, ...]
    key: int
    labels: Mapping[str, Label] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.options) < 2:
            raise DataError(f"it has {len(self.options)} options, not two or more")
        empty = [place for place, option in enumerate(self.options) if not option.strip()]
        if empty:
            raise DataError(f"option {empty[0]} is empty")
        if not 0 <= self.key < len(self.options):
            raise DataError(f"the key {self.key} is outside of its {len(self.options)} options")


Row = Mapping[str, Any]
Word = Callable[[Row], Prompt]
"""Puts a row into words; a row that cannot be asked is a DataError whose message is the reason."""


def piqa(row: Row) -> Prompt:
    """Word a row of PIQA."""
    return Prompt(f"Question: {row['goal']}\nAnswer:", spaced([row["sol1"], row["sol2"]]), int(row["label"]))


def arc(row: Row) -> Prompt:
    """Word a row of ARC."""
    return Prompt(f"Question: {row['question']}\nAnswer:", spaced(row["choices"]["text"]), _key_of(row))


def openbookqa(row: Row) -> Prompt:
    """Word a row of OpenBookQA: the beginning of a sentence, and how it may end."""
    return Prompt(row["question_stem"], spaced(row["choices"]["text"]), _key_of(row))


def commonsense_qa(row: Row) -> Prompt:
    """Word a row of CommonsenseQA: the options are shown, a letter is the answer."""
    return Prompt(
        _shown(row["question"], row["choices"]["text"], "Question: "), _letters(row["choices"]["text"]), _key_of(row)
    )


def hellaswag(row: Row) -> Prompt:
    """Word a row of HellaSwag, whose texts come cleaned."""
    return Prompt(row["ctx"], spaced(row["endings"]), int(row["label"]))


def boolq(row: Row) -> Prompt:
    """Word a row of BoolQ."""
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return Prompt(context, (" no", " yes"), int(row["answer"]))


def social_iqa(row: Row) -> Prompt:
    """Word a row of Social IQa."""
    options = spaced([row["answerA"], row["answerB"], row["answerC"]])
    return Prompt(f"Q: {row['context']} {row['question']}\nA:", options, int(row["label"]) - 1)


def copa(row: Row) -> Prompt:
    """Word a row of COPA: the premise without its full stop, a connective, and how the sentence may go on.

    Two spaces lie before an option, as lm-eval 0.4 has it.
    """
    connective = {"cause": "because", "effect": "therefore"}.get(row["question"])
    if connective is None:
        raise DataError(f"it asks for {row['question']!r}, not for cause or effect")
    options = tuple(f"  {text[:1].lower()}{text[1:]}" for text in (row["choice1"], row["choice2"]))
    return Prompt(f"{row['premise'].strip()[:-1]} {connective}", options, int(row["label"]))


def sst2(row: Row) -> Prompt:
    """Word a row of SST-2."""
    context = f"{row['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    return Prompt(context, (" negative", " positive"), int(row["label"]))


def winogrande(row: Row) -> Prompt:
    """Word a row of WinoGrande: each option is the whole sentence, the blank filled.

    What follows the blank is the same in all options; the label `SHARED` says how long it is. By it, partial
    evaluation (Trinh and Le 2018) tells what is scored from what is read first.
    """
    before, blank, after = row["sentence"].partition("_")
    rest = f" {after.strip()}"
    if not blank or "_" in after or not rest.strip():
        raise DataError("its sentence has no blank, several, or nothing after it")
    words = (row["option1"], row["option2"])
    if not all(map(str.strip, words)):
        raise DataError("a filling is empty")
    return Prompt("", tuple(f"{before}{word}{rest}" for word in words), int(row["answer"]) - 1, {SHARED: len(rest)})


def mmlu(row: Row, shots: Sequence[Row]) -> Prompt:
    """Word a row of MMLU with solved examples of its subject before it; labels say where in the context they lie."""
    subject = row["subject"]
    header = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    solved = "".join(f"{_mmlu_question(shot)} {LETTERS[shot['answer']]}\n\n" for shot in shots)
    labels = {"subject": subject, SHOTS_FROM: len(header), SHOTS_TO: len(header) + len(solved)}
    return Prompt(header + solved + _mmlu_question(row), _letters(row["choices"]), int(row["answer"]), labels)


def spaced(texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts with the space that parts them from what comes first; an empty text stays empty."""
    return tuple(f" {text}" if text.strip() else "" for text in texts)


def _mmlu_question(row: Row) -> str:
    return _shown(row["question"], row["choices"])


def _shown(question: str, choices: Sequence[str], before: str = "") -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([f"{before}{question.strip()}", *lines, "Answer:"])


def _letters(texts: Sequence[str]) -> tuple[str, ...]:
    if not all(text.strip() for text in texts):
        raise DataError("a choice is empty")
    if len(texts) > len(LETTERS):
        raise DataError(f"it has {len(texts)} choices, more than the letters {LETTERS}")
    return spaced(LETTERS[: len(texts)])


def _key_of(row: Row) -> int:
    labels, key = list(row["choices"]["label"]), row["answerKey"].strip()
    if key not in labels:
        raise DataError(f"the key {key!r} is none of its options {', '.join(labels)}")
    return labels.index(key)
