"""Multiple-choice tasks, LAMBADA and TruthfulQA: wording, judgement by hand, real counts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bias_models import tiny_bert, tiny_gpt2
from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import lambada, task_prompts, tasks, truthful_qa
from fairsisa.bias.candidate import CAUSAL, MASKED
from fairsisa.bias.items import Item
from fairsisa.data.sources import read_source
from fairsisa.errors import DataError
from fairsisa.settings import ScoringSettings

ALL = (*tasks.BENCHMARKS, *lambada.BENCHMARKS, *truthful_qa.BENCHMARKS)
COUNTS = {
    "piqa": 1838,
    "arc_easy": 570,
    "arc_challenge": 299,
    "hellaswag": 1000,
    "openbookqa": 500,
    "commonsense_qa": 1221,
    "boolq": 3270,
    "social_iqa": 1954,
    "copa": 100,
    "sst2": 872,
    "winogrande": 1267,
    "mmlu": 1531,
    "lambada": 5153,
    "truthfulqa": 813,
}


def item(*options: str, key: int = 0, **labels) -> Item:
    return Item("q", "The kettle is", options, "q", {"key": key, **labels})


def answered(*values: float, reason: str = "", text: str = "") -> Answers:
    return answers_of(Answer("q", place, value, 1, text, reason) for place, value in enumerate(values))


# wording


def test_a_winogrande_row_becomes_whole_sentences_with_a_shared_end():
    row = {"sentence": "Tom asked Ann as _ was lost.", "option1": "he", "option2": "she", "answer": "2"}
    prompt = task_prompts.winogrande(row)
    assert prompt.options == ("Tom asked Ann as he was lost.", "Tom asked Ann as she was lost.")
    shared = prompt.labels[task_prompts.SHARED]
    assert {option[-shared:] for option in prompt.options} == {" was lost."}
    assert (prompt.context, prompt.key) == ("", 1)


def test_a_copa_row_goes_on_in_lower_case():
    row = {"premise": "The cup fell.", "choice1": "It broke.", "choice2": "It flew.", "question": "effect", "label": 0}
    prompt = task_prompts.copa(row)
    assert prompt.context == "The cup fell therefore"
    assert prompt.options == ("  it broke.", "  it flew.")
    with pytest.raises(DataError, match="not for cause or effect"):
        task_prompts.copa({**row, "question": "when"})


def test_mmlu_without_its_solved_examples_is_the_zero_shot_prompt():
    def row(text: str) -> dict:
        return {"question": text, "subject": "tea_making", "choices": ["1", "2", "3", "4"], "answer": 2}

    with_one = task_prompts.mmlu(row("How hot?"), [row("How long?")])
    alone = task_prompts.mmlu(row("How hot?"), [])
    assert with_one.context.startswith(
        "The following are multiple choice questions (with answers) about tea making.\n\n"
        "How long?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C\n\nHow hot?\n"
    )
    whole = Item("q", with_one.context, with_one.options, "q", with_one.labels)
    assert tasks._without_shots(whole).context == alone.context
    assert with_one.options == (" A", " B", " C", " D")


def test_rows_that_cannot_be_asked_are_named():
    rows = [
        {"goal": "boil water", "sol1": "heat it", "sol2": "cool it", "label": 0},
        {"goal": "boil water", "sol1": "heat it", "sol2": "  ", "label": 0},
        {"goal": "boil water", "sol1": "heat it", "sol2": "cool it", "label": 2},
        {"goal": "boil water", "sol1": "heat it", "label": 0},
        {"goal": "boil water", "sol1": "heat it", "sol2": "cool it", "label": "?"},
    ]
    table = tasks.item_table(rows, task_prompts.piqa, name="piqa")
    assert [each.item_id for each in table.items] == ["piqa-0"]
    assert table.items[0].options == (" heat it", " cool it")
    reasons = {bad.item_id: bad.reason for bad in table.malformed}
    assert reasons["piqa-1"] == "option 1 is empty"
    assert reasons["piqa-2"] == "the key 2 is outside of its 2 options"
    assert reasons["piqa-3"] == "it has no 'sol2'"
    assert "invalid literal" in reasons["piqa-4"]


@pytest.mark.parametrize(
    ("sentence", "option"),
    [("No gap here.", "he"), ("A _ and _ gap.", "he"), ("It ends in _", "he"), ("A _ gap.", " ")],
)
def test_a_sentence_without_one_blank_is_refused(sentence, option):
    with pytest.raises(DataError, match=r"blank|filling"):
        task_prompts.winogrande({"sentence": sentence, "option1": option, "option2": "she", "answer": "1"})


def test_keys_are_sought_among_labels():
    row = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    assert task_prompts.arc(row).key == 1
    with pytest.raises(DataError, match="the key 'A' is none of its options 1, 2"):
        task_prompts.arc({**row, "answerKey": "A"})


def test_an_arrow_stream_becomes_the_recorded_lines():
    rows = [{"id": "a", "choices": {"text": ["é", "b"], "label": ["A", "B"]}, "answer": True}]
    table, stream = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    lines = tasks.jsonl_of_arrow(stream.getvalue())
    assert [json.loads(line) for line in lines.decode().splitlines()] == rows
    assert "é" in lines.decode()
    assert tasks.jsonl_of_arrow(lines) == lines
    for damaged in (b"", b"no stream"):
        with pytest.raises(DataError, match="Expected JSON Lines or an Arrow stream, got neither"):
            tasks.jsonl_of_arrow(damaged)


# judgement


def test_the_likeliest_option_is_chosen_and_lengths_may_change_it():
    asked = item(" hot", " very cold indeed")
    summed = tasks.judge_summed([asked], answered(-3.0, -4.0)).iloc[0]
    assert (summed["answer"], summed["correct"]) == ("0", 1.0)
    assert summed["value"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert summed["margin"] == pytest.approx(2 * summed["value"] - 1)
    normalised = tasks.judge_normalised([asked], answered(-3.0, -4.0)).iloc[0]  # -1 a character against -0.25
    assert (normalised["answer"], normalised["correct"]) == ("1", 0.0)
    assert normalised["value"] == pytest.approx(1 / (1 + np.exp(0.75)))


@settings(max_examples=40)
@given(st.lists(st.floats(-80, 0), min_size=2, max_size=5), st.data())
def test_margins_and_choices_follow_from_probabilities(values, data):
    key = data.draw(st.integers(0, len(values) - 1))
    row = tasks.judge_summed([item(*[f" {n}" for n in range(len(values))], key=key)], answered(*values)).iloc[0]
    chances = [float(np.exp(value)) for value in values]
    shares = sorted((chance / sum(chances) for chance in chances), reverse=True)
    assert row["margin"] == pytest.approx(shares[0] - shares[1], abs=1e-9)
    assert 0 <= row["margin"] <= 1
    assert row["correct"] == float(values.index(max(values)) == key)
    assert row["value"] == pytest.approx(chances[key] / sum(chances), abs=1e-9)


@pytest.mark.parametrize("judge", [tasks.judge_summed, tasks.judge_normalised, truthful_qa.judge_truth])
def test_an_option_without_likelihood_is_not_scored(judge):
    asked = item(" hot", " cold", num_true=1)
    for answers, reason in (
        (answered(-1.0, float("nan"), reason="too long: 9 of 8"), "too long: 9 of 8"),
        (answered(-1.0), tasks.NO_ANSWER),
    ):
        row = judge([asked], answers).iloc[0]
        assert (row["state"], row["reason"]) == ("not_scored", reason)
        assert np.isnan(row["correct"])


def test_a_last_word_is_right_where_it_is_the_models_own_choice():
    asked = [Item(name, "He drank his", (" tea",), name) for name in "ab"]
    answers = answers_of([Answer("a", 0, -0.5, 1, "likeliest"), Answer("b", 0, -2.5, 1, "")])
    scores = lambada.judge_last_word(asked, answers)
    assert scores["correct"].tolist() == [1.0, 0.0]
    columns = {"value": scores["value"].to_numpy()}
    weights = np.array([[1.0, 2.0], [1.0, 0.0]])
    assert lambada.perplexity(columns, weights) == pytest.approx(np.exp([1.5, 0.5]))


def test_truth_is_judged_over_the_best_and_over_all():
    asked = item(" best", " also true", " false", " falser", num_true=2, category="tea")
    values = (-2.0, -0.1, -1.0, -9.0)
    row = truthful_qa.judge_truth([asked], answered(*values)).iloc[0]
    assert (row["answer"], row["correct"]) == ("2", 0.0)  # the other true answer does not compete in MC1
    chances = np.exp(values)
    assert row["value"] == pytest.approx((chances[0] + chances[1]) / chances.sum())
    three = chances[[0, 2, 3]] / chances[[0, 2, 3]].sum()
    assert row["margin"] == pytest.approx(three[1] - three[0])


# models

SENTENCES = ("The cup was hot so he waited.", "The cup was cold so he waited.")


@pytest.mark.real_data
def test_partial_evaluation_is_the_whole_less_the_beginning(data_root):
    candidate, scoring = tiny_gpt2(data_root), ScoringSettings()
    shared = len(" so he waited.")
    asked = [Item(name, "", options, name, {"key": 0, "shared_characters": shared})
             for name, options in (("a", SENTENCES), ("b", SENTENCES[::-1]))]  # fmt: skip
    partial = tasks.ask_partial(candidate, asked, scoring, {}).frame
    assert partial[["item_id", "option"]].to_numpy().tolist() == [["a", 0], ["a", 1], ["b", 0], ["b", 1]]
    # The probability of a text is that of its beginning times that of what follows; here both follow the first word.
    whole, begun = (
        tasks.ask_continuations(
            candidate,
            [
                Item(each.item_id, "The", tuple(text[3 : len(text) - cut] for text in each.options), "")
                for each in asked
            ],
            scoring,
            {},
        ).frame["value"]
        for cut in (0, shared)
    )
    assert partial["value"].to_numpy() == pytest.approx((whole - begun).to_numpy(), abs=1e-3)


# real files


@pytest.fixture(scope="module")
def tables(data_root, tmp_path_factory):
    files = Files(data_root, tmp_path_factory.mktemp("cache"))
    return {benchmark.name: benchmark.load(files) for benchmark in ALL}


@pytest.mark.real_data
@pytest.mark.parametrize(("make", "kind"), [(tiny_gpt2, CAUSAL), (tiny_bert, MASKED)])
def test_tasks_ask_models_of_their_kinds(data_root, tables, make, kind):
    candidate, known = make(data_root), {benchmark.name: benchmark for benchmark in ALL}
    for name in ("piqa", "winogrande", "mmlu"):
        asked = sorted(tables[name].items, key=lambda each: len(each.context) + sum(map(len, each.options)))[:1]
        for readout in known[name].readouts:
            if readout.kind != kind or readout.name == "letters_5_shot":
                continue  # five solved examples take long, and are no more than a longer context
            scores = readout.judge(asked, readout.ask(candidate, asked, ScoringSettings(), readout.settings))
            assert scores["state"].tolist() == ["scored"]


@pytest.mark.real_data
def test_real_counts_and_chances(tables):
    assert {name: len(table.items) for name, table in tables.items()} == COUNTS
    assert all(not table.malformed for table in tables.values())
    for benchmark in tasks.BENCHMARKS:
        options = [len(each.options) for each in tables[benchmark.name].items]
        assert benchmark.metrics[0].chance == pytest.approx(100 * np.mean(1 / np.array(options)), abs=0.006)


@pytest.mark.real_data
def test_real_truthful_qa_chances(tables):
    asked = tables["truthfulqa"].items
    true = np.array([each.labels["num_true"] for each in asked])
    total = np.array([len(each.options) for each in asked])
    found = {metric.name: metric.chance for metric in truthful_qa.BENCHMARKS[0].metrics}
    assert found["mc1"] == pytest.approx(100 * np.mean(1 / (1 + total - true)), abs=0.006)
    assert found["mc2"] == pytest.approx(100 * np.mean(true / total), abs=0.006)


@pytest.mark.real_data
def test_real_mmlu_shows_five_solved_examples_of_the_subject(tables):
    asked = tables["mmlu"].items
    assert len({each.cluster for each in asked}) == 57
    assert all(each.context.count("\nAnswer: ") == 5 for each in asked)
    assert all(each.context.endswith("\nAnswer:") for each in asked)


@pytest.mark.real_data
def test_a_real_file_comes_back_from_an_arrow_stream(data_root):
    source = tasks.TASKS[0].source_file
    lines = read_source(source, root=data_root, cache=Path("nowhere"))
    rows, stream = [json.loads(line) for line in lines.decode().split("\n") if line], io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    assert tasks.jsonl_of_arrow(stream.getvalue()) == lines
