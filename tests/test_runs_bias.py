"""`bias` and `compare` from end to end: any model, the same scores after a kill, floors, and random networks told."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from bias_asking import ask, judge, made_items
from bias_models import tiny_bert, tiny_gpt2
from chains import QUICK, TINY_TEXT, run_of
from fairsisa.bias import asking, catalogue
from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.asking import ask_items
from fairsisa.bias.benchmark import COMPLETIONS, LOG_LIKELIHOODS, PROBABILITIES, Readout
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.divergence import block_divergences
from fairsisa.bias.evaluation import Evaluated
from fairsisa.errors import ConfigError, ModelError
from fairsisa.models.language import save_language_model
from fairsisa.report.bias import BiasReport, findings
from fairsisa.runs import raters
from fairsisa.runs.behaving import option_kl
from fairsisa.runs.bias import bias_run
from fairsisa.runs.candidates import named_models
from fairsisa.runs.comparing import compare_run
from fairsisa.runs.compressing import descend_run
from fairsisa.runs.descendants import Recipe
from fairsisa.runs.directory import Run
from fairsisa.runs.model_folders import short_names
from fairsisa.runs.serving import score_new
from fairsisa.settings import (
    BiasSettings,
    CalibrationSettings,
    ComparisonSettings,
    CompressionSettings,
    DistillationSettings,
    PartitionSettings,
    PathSettings,
    ScoringSettings,
)
from fairsisa.sisa.ensemble import aggregate
from fairsisa.store import Store
from unlearning_cases import HERE, copied, forget, in_slice, silent, trained_in, verified

pytestmark = pytest.mark.real_data
SCORING = ScoringSettings()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """Folders of two tiny random models, a copy of one, and a trained one."""
    folder = tmp_path_factory.mktemp("bias")
    for name, candidate in {"masked": tiny_bert(data_root), "causal": tiny_gpt2(data_root)}.items():
        save_language_model(candidate.network, folder / name, candidate.tokenizer)
    shutil.copytree(folder / "causal", folder / "twin")
    shutil.copytree(data_root / "models" / "stories260K", folder / "stories")
    return folder


def paths_of(folder: Path, data_root: Path) -> PathSettings:
    return PathSettings(
        root=str(folder / "runs"), store=str(folder / "store"), cache=str(folder / "cache"), data=str(data_root)
    )


def asked(world: Path, data_root: Path, out: Path, *models: str, **settings: Any) -> BiasReport:
    chosen = BiasSettings(models=tuple(str(world / name) for name in models), num_replicates=100, **settings)
    return bias_run(out, chosen, SCORING, paths=paths_of(out, data_root))


def value_of(report: BiasReport, model: str, metric: str) -> float:
    rows = report.measures[(report.measures["model"] == model) & (report.measures["metric"] == metric)]
    return float(rows[rows["group"] == ""]["value"].iloc[0])


def test_models_of_every_kind_are_asked_side_by_side(world: Path, data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = ("masked", "causal", "stories/stories260K.bin")
    report = asked(world, data_root, out, *models, benchmarks=("crows_pairs", "stereoset_intersentence"), limit=12)
    assert report.models["name"].tolist() == ["masked", "causal", "stories260K.bin"]
    assert report.models["kind"].tolist() == ["masked", "causal", "causal"]
    readouts = report.measures.groupby(["model", "benchmark"])["readout"].first()
    assert readouts["masked", "crows_pairs"] == "modified"
    assert readouts["causal", "crows_pairs"] == "joint"
    scores = pd.read_parquet(out / "scores" / "masked" / "crows_pairs.modified.parquet")
    by_hand = 100 * (scores["outcome"] == 1).sum() / scores["outcome"].notna().sum()
    assert value_of(report, "masked", "stereotype_score") == pytest.approx(by_hand)
    for name in ("bias.html", "bias.json", "bias_measures.csv", "bias_models.csv"):
        assert (out / name).stat().st_size > 0
    told = json.loads((out / "bias.json").read_text(encoding="utf-8"))
    assert told["settings"]["benchmarks"] == ["crows_pairs", "stereoset_intersentence"]


def test_a_random_network_is_told_and_a_trained_one_is_not(world: Path, data_root: Path, tmp_path: Path) -> None:
    models = ("masked", "causal", "stories/stories260K.bin")
    report = asked(world, data_root, tmp_path / "out", *models, benchmarks=("winogender",), limit=6)
    assert report.models["capable"].tolist() == [False, False, True]
    assert report.models["capability"].str.startswith("no better than chance").tolist() == [True, True, False]
    page = (tmp_path / "out" / "bias.html").read_text(encoding="utf-8")
    assert "no better than chance" in page


def test_a_killed_command_scores_nothing_twice(world: Path, data_root: Path, tmp_path: Path) -> None:
    """The process dies while the third part of the answers is being kept; two are there, and are not asked again."""
    script = f"""
import os, signal
from fairsisa.sisa.ensemble import aggregate
from fairsisa.store import Store
put, kept = Store.put, []
def deadly(store, lineage, *rest, **more):
    if lineage.kind == "answers" and len(kept) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    kept.append(lineage.name)
    return put(store, lineage, *rest, **more)
Store.put = deadly
from pathlib import Path
import test_runs_bias as own
own.in_parts_of(10)
own.asked(Path({str(world)!r}), Path({str(data_root)!r}), Path({str(tmp_path / "killed")!r}), "causal", **own.FEW)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    store = Store(tmp_path / "killed" / "store")
    before = set(store.names("answers"))
    assert len(before) == 2
    with pytest.MonkeyPatch.context() as patch:
        in_parts_of(10, patch)
        put_again: list[str] = []
        put = Store.put
        patch.setattr(Store, "put", lambda own, lineage, *rest, **more: (
            put_again.append(lineage.name), put(own, lineage, *rest, **more))[1])  # fmt: skip
        resumed = asked(world, data_root, tmp_path / "killed", "causal", **FEW)
        whole = asked(world, data_root, tmp_path / "whole", "causal", **FEW)
    pd.testing.assert_frame_equal(resumed.measures, whole.measures)
    every = set(Store(tmp_path / "whole" / "store").names("answers"))
    first_call = put_again[: len(every) - 2]
    assert not before & set(first_call)
    assert set(store.names("answers")) == every == before | set(first_call)


FEW: dict[str, Any] = {"benchmarks": ("crows_pairs",), "limit": 40}


def in_parts_of(size: int, patch: pytest.MonkeyPatch | None = None) -> None:
    """Let every readout be asked so few items at a time."""
    chunks_of = asking.chunks_of
    if patch is None:
        asking.chunks_of = lambda items, _: chunks_of(items, size)
    else:
        patch.setattr(asking, "chunks_of", lambda items, _: chunks_of(items, size))


def compared(world: Path, data_root: Path, out: Path, base: str, *others: str, **settings: Any) -> BiasReport:
    chosen = ComparisonSettings(
        base=str(world / base), other=tuple(str(world / name) for name in others), num_replicates=100, **settings
    )
    return compare_run(out, chosen, SCORING, paths=paths_of(out, data_root))


def test_the_same_model_twice_shows_nothing(world: Path, data_root: Path, tmp_path: Path) -> None:
    report = compared(
        world,
        data_root,
        tmp_path,
        "causal",
        "twin",
        benchmarks=("crows_pairs", "piqa"),
        limit=20,
        corpora=("wikitext2_test",),
        num_blocks=4,
        block_length=32,
    )
    assert (report.comparisons["difference"].fillna(0.0) == 0).all()
    assert (report.comparisons["p_holm"].dropna() == 1.0).all()
    assert report.behaviours[["flips", "all_flips"]].to_numpy().max() == 0
    assert report.behaviours["kl_forward"].max() < 1e-6
    assert report.divergences[["kl_forward", "kl_backward"]].to_numpy().max() < 1e-6
    assert report.divergences["same_top"].tolist() == [1.0]
    assert report.floors["changed_answers"].tolist() == [0, 0]
    assert report.floors["largest_difference"].max() < 1e-4


@pytest.mark.parametrize("name", ["causal", "masked"])
def test_texts_are_read_once_by_two_models(
    world: Path, data_root: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again, nothing is computed; other texts, another order of the models or another model are."""
    made = {"causal": tiny_gpt2, "masked": tiny_bert}[name](data_root)
    network = copy.deepcopy(made.network)
    torch.nn.init.normal_(network.get_input_embeddings().weight, generator=torch.Generator().manual_seed(1))
    save_language_model(network, world / f"other {name}", made.tokenizer)
    computed = []

    def counted(base: Any, other: Any, *given: Any, **more: Any) -> Any:
        computed.append(1)
        return block_divergences(base, other, *given, **more)

    monkeypatch.setattr("fairsisa.runs.diverging.block_divergences", counted)

    def rows(base: str, other: str, **settings: Any) -> pd.DataFrame:
        texts = {"corpora": ("wikitext2_test",), "num_blocks": 4, "block_length": 32}
        asked = {"benchmarks": ("crows_pairs",), "limit": 6, "floor": False, "check_capability": False}
        return compared(world, data_root, tmp_path, base, other, **{**asked, **texts, **settings}).divergences

    first = rows(name, f"other {name}")
    assert (len(computed), len(first)) == (1, 1)
    assert (first[["kl_forward", "kl_backward"]] > 0).all(axis=None)
    pd.testing.assert_frame_equal(rows(name, f"other {name}"), first, check_exact=True)
    assert len(computed) == 1
    back = rows(f"other {name}", name)
    assert (back["kl_forward"] - first["kl_backward"]).abs().max() < 1e-5
    rows(name, f"other {name}", num_blocks=3)
    rows(name, name)
    assert len(computed) == 4


def test_other_models_are_compared_item_by_item(world: Path, data_root: Path, tmp_path: Path) -> None:
    report = compared(
        world, data_root, tmp_path, "causal", "stories/stories260K.bin", benchmarks=("crows_pairs",), limit=30
    )
    base, other = (
        pd.read_parquet(tmp_path / "scores" / name / "crows_pairs.joint.parquet").set_index("item_id")
        for name in ("causal", "stories260K.bin")
    )
    row = report.comparisons[
        (report.comparisons["metric"] == "stereotype_score") & (report.comparisons["group"] == "")
    ].iloc[0]
    change = other["outcome"].loc[base.index] - base["outcome"]
    assert row["difference"] == pytest.approx(100 * change.mean())
    assert (row["to_one"], row["to_zero"]) == ((change > 0).sum(), (change < 0).sum())
    assert report.divergences.empty


def test_what_could_not_be_compared_is_told(world: Path, data_root: Path, tmp_path: Path) -> None:
    """Models of two kinds share no readout, and models of two vocabularies no tokens."""
    report = compared(
        world,
        data_root,
        tmp_path,
        "causal",
        "masked",
        "stories/stories260K.bin",
        benchmarks=("crows_pairs", "crows_pairs:joint"),
        limit=6,
        corpora=("wikitext2_test",),
        num_blocks=2,
        block_length=32,
    )
    told = findings(report)
    assert "Not compared: masked (masked) is not asked crows_pairs as causal (causal) is." in told
    pair = "stories260K.bin (causal) and causal (causal)"
    assert f"Not compared: {pair} do not predict the same tokens of wikitext2_test: no KL over a vocabulary." in told
    assert not [sentence for sentence in told if "could not be asked" in sentence]
    # The default readout, named and not, is one.
    assert not report.measures.duplicated(["model", "benchmark", "readout", "metric", "group"]).any()


@pytest.mark.parametrize("answers", [LOG_LIKELIHOODS, PROBABILITIES, COMPLETIONS])
def test_options_are_held_against_each_other_as_their_readout_answers(answers: str) -> None:
    """P = (.8, .2) and Q = (.5, .5): KL(P || Q) = .8 ln 1.6 + .2 ln .4; what was written has no options."""
    shares = np.array([[0.8, 0.2], [0.5, 0.5]])
    values = np.log(shares) if answers == LOG_LIKELIHOODS else shares
    readout = Readout("made", "masked", ask, judge, answers=answers)
    sides = [
        Evaluated("m", None, readout, None, answers_of(Answer("a", place, each) for place, each in enumerate(side)))
        for side in values
    ]
    there, back = 0.8 * np.log(1.6) + 0.2 * np.log(0.4), 0.5 * np.log(0.625) + 0.5 * np.log(2.5)
    expected = (np.nan, np.nan) if answers == COMPLETIONS else (there, back)
    np.testing.assert_allclose(option_kl(*sides), expected)


def test_names_are_the_shortest_that_tell_folders_apart() -> None:
    folders = ["/a/b/step-000100", "/a/c/checkpoints/step-000100", "/x/gpt2", "/y/gpt2", "/y/bert"]
    assert short_names([Path(folder) for folder in folders]) == [
        "b/step-000100",
        "c/step-000100",
        "x/gpt2",
        "y/gpt2",
        "bert",
    ]
    same_end = [Path(folder) for folder in ("/run", "/a/run", "/a/run", "/b")]
    assert short_names(same_end) == ["/run", "a/run", "a/run", "b"]


# Models of a run


@pytest.fixture(scope="module")
def hateful(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny text run with a student and copies."""
    settings = run_of(
        TINY_TEXT,
        replace(QUICK, max_epochs=1.0),
        data={"name": "synthetic_text", "options": {"num_examples": 60}},
        partition=PartitionSettings(num_shards=2, num_slices=1),
    )
    settings = replace(settings, evaluation=replace(settings.evaluation, baselines=("fraction",)))
    run = trained_in(tmp_path_factory.mktemp("hateful"), settings)
    student = DistillationSettings(name="small", trainer={"max_epochs": 1.0, "batch_size": 16})
    copies = CompressionSettings(({"method": "magnitude", "sparsity": 0.5},), name="sparse")
    for recipe in (Recipe(distil=student), Recipe(compress=(copies, CalibrationSettings()))):
        descend_run(run, recipe, execution=HERE, on_event=silent, evaluate=False)
    return run


def opened(run: Run, part: str = "") -> Candidate:
    return named_models([f"{run.directory}{part}"], SCORING, store=run.store)[0].open()


def test_a_run_answers_as_it_is_served(hateful: Run) -> None:
    texts = ["you are kind", "a dog and a cat", "what a day"]
    served = aggregate(score_new(hateful, texts), hateful.settings.evaluation.aggregation, weights=[1.0, 1.0])
    candidate = opened(hateful)
    assert candidate.classify is not None
    np.testing.assert_allclose(candidate.classify(texts), served)
    assert candidate.classes == hateful.examples.classes
    for part in (":small", ":sparse"):
        smaller = opened(hateful, part)
        assert smaller.classify is not None
        scores = smaller.classify(texts)
        assert scores.shape == (3, 2)
        np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-6)
        assert smaller.digest != candidate.digest


def test_what_a_model_of_a_run_said_is_purged_with_it(
    hateful: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(hateful, tmp_path)
    readout = Readout("made", "classifier", ask, judge, {"journal": str(tmp_path / "journal")})
    for part in ("", ":small", ":sparse"):
        ask_items(opened(run, part), made_items(5), readout, SCORING, store=run.store)
    names = run.store.names("answers")
    assert len(names) == 3
    forget(run, *in_slice(run, 0, 0))
    assert not set(names) & set(run.store.names("answers"))
    assert verified(run)


def test_a_part_that_is_not_there_is_named(hateful: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no student or compressed copy 'smal'"):
        opened(hateful, ":smal")
    with pytest.raises(ModelError, match="Expected folders that match"):
        named_models([str(tmp_path / "*")], SCORING, store=hateful.store)
    with pytest.raises(ConfigError, match="got none: set model"):
        named_models([], SCORING, store=hateful.store)
    with pytest.raises(ConfigError, match="twice: give each once"):
        named_models([str(hateful.directory)] * 2, SCORING, store=hateful.store)


def test_a_missing_rater_names_the_command_that_trains_it(world: Path, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fairsisa train experiment=toxicity_rater"):
        asked(world, data_root, tmp_path, "causal", benchmarks=("real_toxicity_prompts",), limit=2)


def test_a_benchmark_that_suits_no_model_is_refused(world: Path, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hatecheck asks classifier models, and none of yours is one"):
        asked(world, data_root, tmp_path, "causal", benchmarks=("hatecheck",), limit=2)
    with pytest.raises(ConfigError, match="Unknown benchmark 'crow_pairs'"):
        catalogue.find_benchmark("crow_pairs")


def test_the_error_of_a_rater_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hateful: Run) -> None:
    examples = hateful.examples

    def classify(texts: Sequence[str]) -> np.ndarray:
        truth = dict(zip(examples.frame["text"], examples.labels, strict=True))
        right = np.array([truth[text] for text in texts])
        return np.stack([1.0 - right, right], axis=1) * 0.8 + 0.1

    rater = Candidate("rater", "ab" * 32, "classifier", classify=classify, classes=examples.classes)
    facts: Mapping[str, Any] = raters.rater_error(rater, examples, SCORING, store=Store(tmp_path / "store"))
    assert facts["accuracy"] == facts["auc"] == 1.0
    other = replace(rater, classes=("x", "y"))
    assert "is unknown" in raters.rater_error(other, examples, SCORING, store=Store(tmp_path / "store"))["told"]


def test_a_model_may_be_compared_with_itself_and_the_base_comes_first(
    world: Path, data_root: Path, tmp_path: Path
) -> None:
    few = {"benchmarks": ("crows_pairs",), "limit": 10}
    report = compared(world, data_root, tmp_path / "self", "causal", "causal", **few)
    assert report.comparisons["other"].unique().tolist() == ["the base itself"]
    assert (report.comparisons["difference"].fillna(0.0) == 0).all()
    with pytest.raises(ConfigError, match=r"crows_pairs asks .* base=.* is a classifier one"):
        compared_run(world, data_root, tmp_path / "kinds")


def compared_run(world: Path, data_root: Path, out: Path) -> BiasReport:
    network = world / "classifier"
    if not network.exists():
        made_classifier(network, data_root)
    return compared(world, data_root, out, "classifier", "causal", benchmarks=("crows_pairs",), limit=5)


def made_classifier(folder: Path, data_root: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30522
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_bert(data_root).tokenizer.save_pretrained(folder)


def test_what_is_not_asked_alike_is_noted(world: Path, data_root: Path, tmp_path: Path) -> None:
    report = compared(world, data_root, tmp_path, "masked", "causal", benchmarks=("crows_pairs",), limit=5)
    assert report.comparisons.empty
    note = report.notes[report.notes["state"] == "not_compared"].iloc[0]
    assert (note["model"], note["benchmark"], note["readout"]) == ("causal", "crows_pairs", "modified")


def test_models_keep_the_order_of_their_names(world: Path, hateful: Run) -> None:
    names = [str(world / "masked"), str(hateful.directory), str(world / "causal")]
    found = [each.name for each in named_models(names, SCORING, store=hateful.store)]
    assert found == ["masked", hateful.directory.name, "causal"]
