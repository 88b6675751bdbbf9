"""MT-Bench and Vicuna-Bench: open questions whose answers a chat model grades."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.benchmark import (
    CAPABILITY,
    COMPLETIONS,
    LABEL,
    Benchmark,
    Columns,
    Metric,
    Readout,
    Value,
    by_item,
    score_row,
    scores_table,
)
from fairsisa.bias.candidate import CAUSAL, Candidate
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.judging import CHAT_JUDGE, NO_JUDGE, Exchange, Keep, judge_texts
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.rating import RATING
from fairsisa.bias.readouts.texts import ask_texts
from fairsisa.data.sources import SourceFile, github_url
from fairsisa.errors import ConfigError
from fairsisa.settings import JudgeSettings, ScoringSettings

FASTCHAT, FASTCHAT_COMMIT = "lm-sys/FastChat", "0e6d3e4beaab66f4d3f93db72541a4abab8af28d"
SCORE, WHY_NOT = f"{RATING}score", f"{RATING}reason"
USER, ASSISTANT = "User:", "Assistant:"
ROLES = ("user", "assistant")
WITH_REFERENCES = ("math", "reasoning", "coding")
WRITING = {"max_new_tokens": 512, "stop": [f"\n{USER}"]}
MT_QUESTIONS, VICUNA_QUESTIONS = (
    SourceFile(
        f"mcq/{name}_questions.jsonl",
        github_url(FASTCHAT, FASTCHAT_COMMIT, f"fastchat/llm_judge/data/{name}/question.jsonl"),
        f"sha256:{digest}",
    )
    for name, digest in (
        ("mt_bench", "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7"),
        ("vicuna_bench", "c248c5c98ba45bb0c2aadae2f270e643bd32679c6c306a3b2a503ac4254cdaa5"),
    )
)


def items_of(rows: Sequence[Mapping[str, Any]]) -> ItemTable:
    """Return an item for each turn of each question: `options` hold the question's turns, the label `turn` how many.

    A question's turns are one cluster. The labels `reference_<turn>` are there where the category needs a reference
    and the file has one.
    """
    items, malformed = list[Item](), list[Malformed]()
    for row in rows:
        name, turns, category = str(row["question_id"]), tuple(map(str, row["turns"])), str(row["category"])
        if not turns or not all(turn.strip() for turn in turns):
            malformed.append(Malformed(name, "it has no turn, or an empty one"))
            continue
        references = row.get("reference", ()) if category in WITH_REFERENCES else ()
        known = {f"reference_{place}": str(text) for place, text in enumerate(references, 1)}
        for turn in range(1, len(turns) + 1):
            items.append(Item(f"{name}-{turn}", "", turns, name, {"category": category, "turn": turn, **known}))
    return ItemTable(tuple(items), tuple(malformed))


def ask_turns(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer a conversation turn by turn, each in sight of the questions and answers before it: `option` is the turn.

    With a chat template the turns are put into the tokenizer's; otherwise they follow "User:" and "Assistant:", a line
    each. `settings` are those of `ask_texts`, whose `stop` is for the latter alone. Items of one cluster are turns of
    one conversation, which is held once. What is drawn at random depends on cluster and turn. One text a turn is
    written, whatever `scoring.num_continuations` says. Where a turn was not answered, none after it is.

    Raises:
        ConfigError: as `ask_texts`.
    """
    one = replace(scoring, num_continuations=1, chat_template=False)
    writing = {name: value for name, value in settings.items() if name != "stop" or not scoring.chat_template}
    lengths, questions = dict[str, int](), {item.cluster: item.options for item in items}
    for item in items:
        lengths[item.cluster] = max(_turn(item), lengths.get(item.cluster, 0))
    said: dict[str, list[Answer]] = {cluster: [] for cluster in questions}
    for turn in range(max(lengths.values(), default=0)):
        going = [each for each in said if lengths[each] > turn and not any(answer.reason for answer in said[each])]
        prompts = [
            Item(f"{each}/{turn + 1}", _worded(candidate, questions[each], said[each], scoring), (), each)
            for each in going
        ]
        rows = ask_texts(candidate, prompts, one, writing).frame if prompts else answers_of([]).frame
        for each, row in zip(going, rows.to_dict("records"), strict=True):
            said[each].append(Answer(**{str(name): value for name, value in row.items()}))
    return answers_of(answer for item in items for answer in _of_item(item, said[item.cluster]))


def graded(items: Sequence[Item], answers: Answers, settings: JudgeSettings, keep: Keep) -> Answers:
    """Return answers with columns `SCORE` and `WHY_NOT`: the chat judge's rating of each item's last answer.

    Each item is graded with the whole conversation in sight, and references where it has them (`judge_texts`). The
    rows of its other answers, and items that were not answered, have no rating.
    """
    rows, exchanges = list[int](), list[Exchange]()
    places = answers.frame.reset_index(drop=True).groupby("item_id", sort=False).indices
    for item in items:
        own = places.get(item.item_id, np.zeros(0, dtype=np.int64))
        if len(own) != _turn(item) or answers.frame["reason"].iloc[own].astype(bool).any():
            continue
        texts = tuple(answers.frame["text"].iloc[own].astype(str))
        rows.append(int(own[-1]))
        exchanges.append(Exchange(item.options[: len(texts)], texts, _references(item)))
    scores, reasons = np.full(len(answers), np.nan), np.full(len(answers), "", dtype=object)
    for row, judgement in zip(rows, judge_texts(exchanges, settings, keep), strict=True):
        scores[row], reasons[row] = judgement.rating, judgement.reason
    return Answers(answers.frame.assign(**{SCORE: scores, WHY_NOT: reasons}), answers.vectors)


def judge_ratings(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Return scores from answers that `graded` has been through: `value` is the rating, from 1 to 10."""
    there = SCORE in answers.frame.columns
    rows = []
    for item, of_item in by_item(items, answers):
        if of_item.empty:
            rows.append(score_row(item, reason="nothing was written"))
            continue
        last = of_item.iloc[-1]
        reason = str(last["reason"]) or (str(last[WHY_NOT]) if there else NO_JUDGE)
        rows.append(
            score_row(item, reason=reason) if reason else score_row(item, answer=f"{last[SCORE]:g}", value=last[SCORE])
        )
    return scores_table(rows)


def mean_of_turn(turn: int) -> Value:
    """Return the mean rating of the answers of one turn."""

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        there = np.asarray(columns[f"{LABEL}turn"]) == turn
        return mean_of("value")({"value": np.asarray(columns["value"])[there]}, weights[there])

    return value


def _worded(candidate: Candidate, questions: Sequence[str], answers: Sequence[Answer], scoring: ScoringSettings) -> str:
    """Return the conversation up to the question that is to be answered next."""
    last = questions[len(answers)]
    pairs = [(question, answer.text.strip()) for question, answer in zip(questions, answers, strict=False)]
    if not scoring.chat_template:
        before = "".join(f"{USER} {question}\n{ASSISTANT} {answer}\n" for question, answer in pairs)
        return f"{before}{USER} {last}\n{ASSISTANT}"
    turns = [{"role": role, "content": text} for pair in pairs for role, text in zip(ROLES, pair, strict=True)]
    if not candidate.tokenizer.chat_template:
        raise ConfigError(f"The tokenizer of {candidate.name} has no chat template: set chat_template=false.")
    try:
        return str(
            candidate.tokenizer.apply_chat_template(
                [*turns, {"role": "user", "content": last}], tokenize=False, add_generation_prompt=True
            )
        )
    except jinja2.TemplateError as error:
        raise ConfigError(f"The chat template of {candidate.name} cannot be filled in: {error}") from error


def _of_item(item: Item, said: Sequence[Answer]) -> list[Answer]:
    """Return the answers to an item's turns; those that were not given have the reason of the one before."""
    given = [replace(answer, item_id=item.item_id, option=turn) for turn, answer in enumerate(said[: _turn(item)])]
    missing = range(len(given), _turn(item))
    return [*given, *(Answer(item.item_id, turn, math.nan, reason=given[-1].reason) for turn in missing)]


def _references(item: Item) -> tuple[str, ...]:
    names = [f"reference_{turn}" for turn in range(1, _turn(item) + 1)]
    found = tuple(str(item.labels[name]) for name in names if name in item.labels)
    return found if len(found) == len(names) else ()


def _turn(item: Item) -> int:
    return int(item.labels["turn"] or 0)


# An even chunk, as the two items of a question are equally long: they are asked together, and the first turn once.
READOUTS = (
    Readout("texts", CAUSAL, ask_turns, judge_ratings, WRITING, chunk=16, answers=COMPLETIONS, rater=CHAT_JUDGE),
)
RATED = "the judge gives better grades"
MEAN = Metric("rating", mean_of("value"), CAPABILITY, RATED)
JUDGED = "Zheng et al. 2023, NeurIPS; the judge's prompt is our own"
CRITICISM = "A model's grades depend on order, length and on whose answers they are (Zheng et al. 2023)."
BENCHMARKS = (
    Benchmark(
        name="mt_bench",
        title="MT-Bench: 80 questions of two turns, graded by a chat model",
        load=lambda files: items_of(files.objects(MT_QUESTIONS)),
        readouts=READOUTS,
        metrics=(
            MEAN,
            *(Metric(f"rating_turn_{turn}", mean_of_turn(turn), CAPABILITY, RATED) for turn in (1, 2)),
        ),
        source=JUDGED,
        licence="Apache-2.0",
        criticism=CRITICISM,
        breakdown=("category",),
        files=(MT_QUESTIONS,),
    ),
    Benchmark(
        name="vicuna_bench",
        title="Vicuna-Bench: 80 questions, graded by a chat model",
        load=lambda files: items_of(files.objects(VICUNA_QUESTIONS)),
        readouts=READOUTS,
        metrics=(MEAN,),
        source=JUDGED,
        licence="Apache-2.0",
        criticism=CRITICISM,
        breakdown=("category",),
        files=(VICUNA_QUESTIONS,),
    ),
)
