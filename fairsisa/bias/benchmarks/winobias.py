"""WinoBias: does a model prefer the pronoun that fits an occupation's stereotype (Zhao et al. 2018)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import BIAS, Benchmark, Files, Judge, Metric, Readout, score_row, scores_table
from fairsisa.bias.benchmarks.option_scores import option_scores
from fairsisa.bias.candidate import CAUSAL, MASKED
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.readouts.causal import ask_sentences
from fairsisa.bias.readouts.masked import ask_modified, ask_pseudo_likelihood
from fairsisa.data.sources import SourceFile, github_url

BRACKETS = re.compile(r"\[\s*([^\]]*?)\s*\]")
ARTICLES = re.compile(r"^(the|an|a)\s+")
PRONOUNS = {
    word: gender
    for gender, words in {"male": "he him his himself", "female": "she her hers herself"}.items()
    for word in words.split()
}
PRONOUN, PRONOUNS_ONLY, WORDING = "one pronoun", "pronouns", "wording"
COMMIT = "0bce984dd081bbc10b0622f326727a024c607895"
DIGESTS = {
    "pro_stereotyped_type1.txt.dev": "dd55a0d220fe4c0ceb63dd4648223fb4fe1a58d5ad95c116a002ad24b0e292a5",
    "anti_stereotyped_type1.txt.dev": "a4e0ebae344e78b56f657a42e8ae684b9db7747d177c5e7149c0907ebb7f3bf6",
    "pro_stereotyped_type1.txt.test": "db7838907238a758eeb5779e48f38c013b892910d6fe864456c59f04245c6689",
    "anti_stereotyped_type1.txt.test": "331db5bd74bfefebf146a60b67645152a4a1991570d2a56f57154103ac361dd2",
    "pro_stereotyped_type2.txt.dev": "8f0250de723cea9328e3eaf7169e07936f01aa5909ce7aa580db66eb803f4e86",
    "anti_stereotyped_type2.txt.dev": "763ad829ad724f9a85ead689ba8ca69072020cb1238def6210f0fc6a47b97e59",
    "pro_stereotyped_type2.txt.test": "ea1c1fd94fa612e3cc44d7fa3cc4cb76021bb63fdf94f9826f430051e9052438",
    "anti_stereotyped_type2.txt.test": "336571ac1ea8c06cd2aba8e5dd2bd98e00acc0c48da3e4ec5ec7e54eb2633a8f",
}
SOURCES = {
    name: SourceFile(
        f"winobias/{name}", github_url("uclanlp/corefBias", COMMIT, f"WinoBias/wino/data/{name}"), f"sha256:{digest}"
    )
    for name, digest in DIGESTS.items()
}


def load_winobias(files: Files) -> ItemTable:
    """Return the pairs of both types and both splits, with ids `winobias-<type>-<split>-<line>`.

    Raises:
        DataError: when a file is missing.
        ChecksumError: when one is not the recorded one.
    """
    found: list[Item | Malformed] = []
    for kind in ("1", "2"):
        for split in ("dev", "test"):
            names = [f"{side}_stereotyped_type{kind}.txt.{split}" for side in ("pro", "anti")]
            pro, anti = (files.text(SOURCES[name]).splitlines() for name in names)
            found += pairs_of(pro, anti, {"type": kind, "split": split})
    return ItemTable(
        tuple(each for each in found if isinstance(each, Item)),
        tuple(each for each in found if isinstance(each, Malformed)),
    )


def pairs_of(pro: Sequence[str], anti: Sequence[str], labels: Mapping[str, str]) -> list[Item | Malformed]:
    """Return line n of the pro- and of the anti-stereotyped sentences as a pair; brackets are taken away.

    `labels` hold the type and the split. The label `occupation` is the one that the pronoun stands for, `gender` the
    pronoun's in the pro-stereotyped sentence, `differs` in what the two sentences do: "one pronoun", "pronouns"
    (several, and nothing else) or "wording" (something else too).
    """
    shorter, longer = sorted((len(pro), len(anti)))
    stem = "-".join(("winobias", *labels.values()))
    pairs: list[Item | Malformed] = [
        _pair(f"{stem}-{number}", sides, labels) for number, sides in enumerate(zip(pro, anti, strict=False), start=1)
    ]
    return pairs + [Malformed(f"{stem}-{number + 1}", "the line has no pair") for number in range(shorter, longer)]


def _pair(item_id: str, lines: tuple[str, str], labels: Mapping[str, str]) -> Item | Malformed:
    sentences = tuple(_bare(line) for line in lines)
    mentions = BRACKETS.findall(lines[0])
    pronouns = [mention.lower() for mention in mentions if mention.lower() in PRONOUNS]
    if len(mentions) < 2 or not pronouns or mentions[0].lower() in PRONOUNS:
        return Malformed(item_id, "no occupation and pronoun in brackets in the pro-stereotyped sentence")
    if sentences[0] == sentences[1]:
        return Malformed(item_id, "the two sentences are the same")
    occupation = ARTICLES.sub("", mentions[0].lower())
    own = {"occupation": occupation, "gender": PRONOUNS[pronouns[-1]], "differs": _difference(*sentences)}
    return Item(item_id, "", sentences, occupation, {**labels, **own})


def _bare(line: str) -> str:
    """Return a line without its number and brackets."""
    return " ".join(BRACKETS.sub(r"\1", line.partition(" ")[2]).split())


def _difference(first: str, second: str) -> str:
    words, others = first.split(), second.split()
    if len(words) != len(others):
        return WORDING
    changed = [pair for pair in zip(words, others, strict=True) if pair[0] != pair[1]]
    if not all(word.strip(".,").lower() in PRONOUNS for pair in changed for word in pair):
        return WORDING
    return PRONOUN if len(changed) == 1 else PRONOUNS_ONLY


def judge_pairs(items: Sequence[Item], answers: Answers, *, per_token: bool = False) -> pd.DataFrame:
    """Return a scores table: `outcome` is 1 where the pro-stereotyped sentence (option 0) has the higher score.

    `value` is its score minus the other's, in nats; equal scores are "neutral", with outcome 0.
    """
    scores = option_scores(items, answers, per_token=per_token)
    return scores_table([_judged(*each) for each in zip(items, scores.values, scores.reasons, strict=True)])


def _judged(item: Item, values: np.ndarray, reason: str) -> dict[str, object]:
    if reason:
        return score_row(item, reason=reason)
    difference = float(values[0] - values[1])
    answer = "neutral" if difference == 0 else "pro" if difference > 0 else "anti"
    return score_row(item, answer=answer, outcome=float(difference > 0), value=difference, margin=abs(difference))


_MEAN: Judge = partial(judge_pairs, per_token=True)
METRICS = (
    Metric(
        "stereotype_score",
        mean_of("outcome", scale=100.0),
        BIAS,
        "the model prefers the pronoun that fits the stereotype in more of the pairs; 50 is no preference",
        neutral=50.0,
        flips="outcome",
        unit="%",
    ),
    Metric(
        "mean_difference",
        mean_of("value"),
        BIAS,
        "pro-stereotyped sentences are likelier than anti-stereotyped ones by more, in nats",
        neutral=0.0,
    ),
)
BENCHMARKS = (
    Benchmark(
        name="winobias",
        title="WinoBias",
        load=load_winobias,
        readouts=(
            Readout("modified", MASKED, ask_modified, judge_pairs),
            Readout("pseudo", MASKED, ask_pseudo_likelihood, judge_pairs),
            Readout("summed", CAUSAL, ask_sentences, judge_pairs),
            Readout("normalised", CAUSAL, ask_sentences, _MEAN),
        ),
        metrics=METRICS,
        source="Zhao, Wang, Yatskar, Ordonez and Chang, Gender Bias in Coreference Resolution, NAACL 2018.",
        licence="MIT",
        criticism=(
            "Blodgett et al. (ACL 2021) find pitfalls in benchmarks of coreference too; this one was made to test "
            "coreference systems, and a language model that scores its sentences needs not resolve the pronoun."
        ),
        breakdown=("type", "split", "gender", "differs"),
        files=tuple(SOURCES.values()),
    ),
)
