"""Tasks of lm-eval as benchmarks: made task objects, and the real package where it is installed."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Benchmark, Files
from fairsisa.bias.benchmarks.task_prompts import SHARED
from fairsisa.bias.lm_eval import adapted, benchmark_of
from fairsisa.errors import ConfigError

DOCS = [
    {"text": "The kettle is", "options": ["hot", "cold"], "gold": 1},
    {"text": "The cup is", "options": ["full", "empty", "gone"], "gold": "full"},
    {"text": "The tea is", "options": ["green", "black"], "gold": 7},
    {"text": "The pot is", "options": ["blue", "red"], "gold": [0, 1]},
]


class MadeTask:
    """What the adapter reads of a task of lm-eval 0.4.13."""

    def __init__(self, output_type: str, docs: list[dict], *, multiple_input: int = 0, **config) -> None:
        self.OUTPUT_TYPE, self.docs, self.multiple_input, self.instances = output_type, docs, multiple_input, []
        known = {
            "task": "made",
            "process_results": None,
            "dataset_path": "json",
            "target_delimiter": " ",
            "filter_list": None,
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "generation_kwargs": {"until": "\n", "max_gen_toks": 8},
        }
        self.config = SimpleNamespace(**{**known, **config})

    def doc_to_choice(self, doc):
        return doc["options"]

    def doc_to_target(self, doc):
        return doc["gold"]

    doc_to_text = doc_to_target

    def build_all_requests(self, *, limit, rank, world_size):
        assert (limit, rank, world_size) == (None, 0, 1)
        for doc_id, doc in enumerate(self.docs):
            for place, args in enumerate(self.requests(doc)):
                self.instances.append(SimpleNamespace(doc_id=doc_id, doc=doc, idx=place, args=args))

    def requests(self, doc):
        if self.OUTPUT_TYPE == "generate_until":
            return [(doc["text"], self.config.generation_kwargs)]
        if self.OUTPUT_TYPE != "multiple_choice":
            return [(doc["text"], f" {doc['gold']}")]
        if self.multiple_input:
            return [(f"{option} is what", f" {doc['text']}") for option in doc["options"]]
        # The second half is what mutual information needs.
        return [(context, f" {option}") for context in (doc["text"], "") for option in doc["options"]]


def items(benchmark: Benchmark, tmp_path):
    return benchmark.load(Files(None, tmp_path))


def test_a_multiple_choice_task_becomes_items_with_its_own_prompts(tmp_path):
    benchmark = adapted(MadeTask("multiple_choice", DOCS))
    table = items(benchmark, tmp_path)
    assert benchmark.name == "lm_eval_made"
    assert [(item.item_id, item.context, item.options, item.labels["key"]) for item in table.items] == [
        ("made-0", "The kettle is", (" hot", " cold"), 1),
        ("made-1", "The cup is", (" full", " empty", " gone"), 0),
    ]
    assert {bad.item_id: bad.reason for bad in table.malformed} == {
        "made-2": "the key 7 is outside of its 2 options",
        "made-3": "its key [0, 1] is not one of its options",
    }
    assert benchmark.metrics[0].chance == pytest.approx(100 * (1 / 2 + 1 / 3) / 2)
    assert [readout.name for readout in benchmark.readouts if readout.kind == "causal"] == [
        "continuations",
        "normalised",
    ]


def test_another_delimiter_leaves_no_length_to_divide_by():
    benchmark = adapted(MadeTask("multiple_choice", DOCS, target_delimiter=""))
    assert [readout.name for readout in benchmark.readouts] == ["continuations", "pseudo_likelihood"]


def test_options_in_the_context_are_asked_by_what_follows(tmp_path):
    table = items(adapted(MadeTask("multiple_choice", DOCS[:1], multiple_input=2)), tmp_path)
    (item,) = table.items
    assert item.options == ("hot is what The kettle is", "cold is what The kettle is")
    assert (item.context, item.labels["key"], item.labels[SHARED]) == ("", 1, len(" The kettle is"))


def test_a_loglikelihood_task_is_judged_like_a_last_word(tmp_path):
    benchmark = adapted(MadeTask("loglikelihood", DOCS[:2]))
    table = items(benchmark, tmp_path)
    assert [item.options for item in table.items] == [(" 1",), (" full",)]
    answers = answers_of([Answer("made-0", 0, -1.0, 1, "likeliest"), Answer("made-1", 0, -2.0, 1, "")])
    assert benchmark.readouts[0].judge(table.items, answers)["correct"].tolist() == [1.0, 0.0]


def test_what_is_written_must_be_the_target_as_it_stands(tmp_path):
    benchmark = adapted(MadeTask("generate_until", DOCS))
    table = items(benchmark, tmp_path)
    assert [bad.item_id for bad in table.malformed] == ["made-3"]
    (readout,) = benchmark.readouts
    assert readout.settings == {"max_new_tokens": 8, "stop": ["\n"]}
    answers = answers_of([Answer("made-0", 0, 0.0, 1, "1"), Answer("made-1", 0, 0.0, 1, " full")])
    scores = readout.judge(table.items, answers)
    assert scores["correct"].tolist()[:2] == [1.0, 0.0]
    assert scores["reason"].tolist()[2] == "nothing was written"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (MadeTask("loglikelihood_rolling", DOCS), "output type 'loglikelihood_rolling'"),
        (MadeTask("multiple_choice", DOCS, process_results=print), "a function of its own"),
        (MadeTask("generate_until", DOCS, filter_list=[{"name": "x"}]), "more than a plain exact_match"),
        (MadeTask("generate_until", DOCS, metric_list=[{"metric": "bleu"}]), "more than a plain exact_match"),
        (
            MadeTask("generate_until", DOCS, metric_list=[{"metric": "exact_match", "ignore_case": True}]),
            "more than a plain exact_match",
        ),
    ],
)
def test_what_only_lm_eval_can_score_is_refused(task, message):
    with pytest.raises(ConfigError, match=message):
        adapted(task)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'fairsisa\[lm-eval\]'"):
        benchmark_of("arc_easy")


@pytest.mark.filterwarnings("ignore")  # lm-eval's and those of what it loads are not ours to mend
def test_a_real_task_of_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval.tasks")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = "".join(json.dumps({"text": doc["text"], "opts": ["hot", "cold"], "gold": 1}) + "\n" for doc in DOCS)
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "made.yaml").write_text(
        f"task: made_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{opts}}'\n"
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    table = items(benchmark_of(f"{tmp_path}/made_choice"), tmp_path)
    assert [item.context for item in table.items] == [doc["text"] for doc in DOCS]
    assert {item.options for item in table.items} == {(" hot", " cold")}
    with pytest.raises(ConfigError, match="Did you mean 'made_choice'"):
        benchmark_of(f"{tmp_path}/made_choices")
