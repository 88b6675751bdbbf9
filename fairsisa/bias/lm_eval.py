"""Tasks of lm-evaluation-harness as benchmarks, put and judged by fairsisa."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import (
    CAPABILITY,
    COMPLETIONS,
    Benchmark,
    Metric,
    Readout,
    by_item,
    score_row,
    scores_table,
)
from fairsisa.bias.benchmarks.lambada import PERPLEXITY, RIGHT, judge_last_word
from fairsisa.bias.benchmarks.task_prompts import SHARED, Prompt
from fairsisa.bias.benchmarks.tasks import FILLED, KEY, PLAIN, WITH_LENGTHS, choice_metrics
from fairsisa.bias.candidate import CAUSAL
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.readouts.causal import ask_continuations
from fairsisa.bias.readouts.texts import ask_texts
from fairsisa.errors import ConfigError, DataError
from fairsisa.settings import nearest

MULTIPLE_CHOICE, LOGLIKELIHOOD, GENERATE_UNTIL = "multiple_choice", "loglikelihood", "generate_until"
TARGET = "target"
UNTIL, MAX_NEW_TOKENS = "\n\n", 256
"""Where lm-eval stops a text, and what it writes at most, if a task does not say."""
INSTALL = "Tasks of lm-eval need the package lm-eval: pip install 'fairsisa[lm-eval]'."
SOURCE = "lm-eval's task {} (Gao et al. 2024)"
EXACT = Metric(
    "exact_match",
    mean_of("correct", scale=100),
    CAPABILITY,
    "more texts are the right answer",
    chance=0.0,
    flips="correct",
    unit="%",
)


@dataclass(frozen=True)
class Form:
    """What a task's type of output makes of it: its items, readouts and metrics."""

    table: ItemTable
    readouts: tuple[Readout, ...]
    metrics: tuple[Metric, ...]


def benchmark_of(name: str) -> Benchmark:
    """Return a task of lm-eval as a benchmark: `arc_easy`, or `<folder>/<task>` for a task in a folder of your own.

    lm-eval fetches a task's data itself, and runs the code that a task's description in such a folder names.

    Raises:
        ConfigError: when lm-eval is not installed, or has no task of that name, or the task is scored otherwise than
            by the likelihood of options, of a text, or by exact match.
    """
    try:
        library = importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise ConfigError(f"{INSTALL} ({error})") from error
    folder, _, task = name.rpartition("/")
    manager = library.TaskManager(include_path=folder or None, include_defaults=not folder)
    if task not in manager.all_subtasks:
        group = task in manager.all_tasks
        cure = " It is a group: name one of its tasks." if group else nearest(task, manager.all_subtasks)
        raise ConfigError(f"lm-eval has no task {task!r}{f' in {folder}' if folder else ''}.{cure}")
    return adapted(manager.load(task)["tasks"][task])


def adapted(task: Any) -> Benchmark:
    """Return a loaded task of lm-eval as a benchmark named `lm_eval_<task>`; its requests are built here.

    Prompts, solved examples and options are those of `task.build_all_requests`. Options are judged as lm-eval's acc
    and, where one space parts them from the context, acc_norm; a text by acc and perplexity; what is written by
    whether it is the target, character by character.

    Raises:
        ConfigError: when the task has an output type, filters, metrics or a function of its own that is none of these.
    """
    name = str(task.config.task)
    forms = {MULTIPLE_CHOICE: _choices, LOGLIKELIHOOD: _texts, GENERATE_UNTIL: _written}
    if task.OUTPUT_TYPE not in forms:
        raise ConfigError(f"The task {name} has output type {task.OUTPUT_TYPE!r}; those known are {', '.join(forms)}.")
    if callable(task.config.process_results):
        raise ConfigError(f"The task {name} scores by a function of its own, which only lm-eval itself can run.")
    task.build_all_requests(limit=None, rank=0, world_size=1)
    form = forms[task.OUTPUT_TYPE](task, name)
    return Benchmark(
        name=f"lm_eval_{name}",
        title=f"{name}, a task of lm-eval",
        load=lambda files: form.table,
        readouts=form.readouts,
        metrics=form.metrics,
        source=SOURCE.format(name),
        licence=f"that of its data set, {task.config.dataset_path}",
        criticism="Not looked for: the task is none of fairsisa's own.",
    )


def judge_exact(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Judge whether the first text that was written is the target, as it stands."""
    rows = []
    for item, of_item in by_item(items, answers):
        reason = next((str(each) for each in of_item["reason"] if each), "" if len(of_item) else "nothing was written")
        if reason:
            rows.append(score_row(item, reason=reason))
            continue
        text = str(of_item.sort_values("option")["text"].iloc[0])
        rows.append(score_row(item, answer=text, correct=float(text == item.labels[TARGET])))
    return scores_table(rows)


def _choices(task: Any, name: str) -> Form:
    items, malformed = list[Item](), list[Malformed]()
    for doc_id, instances in groupby(task.instances, key=lambda instance: instance.doc_id):
        requests = list(instances)
        item_id = f"{name}-{doc_id}"
        try:
            prompt = _prompt(task, requests)
        except DataError as error:
            malformed.append(Malformed(item_id, str(error)))
            continue
        items.append(Item(item_id, prompt.context, prompt.options, item_id, {KEY: prompt.key, **prompt.labels}))
    table = ItemTable(tuple(items), tuple(malformed))
    chance = 100 * float(np.mean([1 / len(item.options) for item in items]))
    if task.multiple_input:
        return Form(table, FILLED, choice_metrics(chance))
    return Form(table, WITH_LENGTHS if task.config.target_delimiter == " " else PLAIN, choice_metrics(chance))


def _prompt(task: Any, requests: Sequence[Any]) -> Prompt:
    """Return one question of a multiple-choice task; what lm-eval asks beyond its options is left out."""
    doc = requests[0].doc
    choices = [str(choice) for choice in task.doc_to_choice(doc)]
    pairs = [request.args[:2] for request in sorted(requests, key=lambda request: int(request.idx))][: len(choices)]
    if task.multiple_input:
        # The options are what is read first; what follows is the same for all.
        rest = pairs[0][1]
        options = tuple(f"{context}{rest}" for context, _ in pairs)
        return Prompt("", options, _key_of(task.doc_to_text(doc), choices), {SHARED: len(rest)})
    options = tuple(option for _, option in pairs)
    return Prompt(pairs[0][0], options, _key_of(task.doc_to_target(doc), choices))


def _key_of(gold: Any, choices: Sequence[str]) -> int:
    if isinstance(gold, int):
        return int(gold)
    if isinstance(gold, str) and gold in choices:
        return choices.index(gold)
    raise DataError(f"its key {gold!r} is not one of its options")


def _texts(task: Any, name: str) -> Form:
    pairs = [(each, *each.args[:2]) for each in task.instances]
    items = tuple(
        Item(f"{name}-{each.doc_id}", text, (option,), f"{name}-{each.doc_id}") for each, text, option in pairs
    )
    readout = Readout("continuations", CAUSAL, ask_continuations, judge_last_word)
    return Form(ItemTable(items), (readout,), (RIGHT, PERPLEXITY))


def _written(task: Any, name: str) -> Form:
    metrics = [dict(each) for each in task.config.metric_list or ()]
    plain = {"metric", "aggregation", "higher_is_better"}
    if [each["metric"] for each in metrics] != ["exact_match"] or set(metrics[0]) - plain or task.config.filter_list:
        raise ConfigError(
            f"The task {name} judges texts by more than a plain exact_match (filters, other metrics or exceptions), "
            "which only lm-eval itself can run."
        )
    items, malformed = list[Item](), list[Malformed]()
    for each in task.instances:
        item_id, target = f"{name}-{each.doc_id}", task.doc_to_target(each.doc)
        if isinstance(target, list):
            malformed.append(Malformed(item_id, "it has several targets"))
        else:
            items.append(Item(item_id, each.args[0], (), item_id, {TARGET: str(target)}))
    writing = task.config.generation_kwargs or {}
    until = writing.get("until", UNTIL)
    settings = {
        "max_new_tokens": int(writing.get("max_gen_toks", MAX_NEW_TOKENS)),
        "stop": [until] if isinstance(until, str) else list(until),
    }
    readout = Readout("texts", CAUSAL, ask_texts, judge_exact, settings, chunk=32, answers=COMPLETIONS)
    return Form(ItemTable(tuple(items), tuple(malformed)), (readout,), (EXACT,))
