"""Wikipedia madlibs: does a toxicity classifier score texts higher for naming an identity."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from fairsisa.bias.benchmark import BIAS, CAPABILITY, PROBABILITIES, Benchmark, Columns, Files, Metric, Readout, Value
from fairsisa.bias.benchmarks.classified import (
    ask_harmful,
    auc_between,
    auc_of,
    judge_harmful,
    mass_below,
    rates_by,
    sides,
)
from fairsisa.bias.candidate import CLASSIFIER
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of, ratio
from fairsisa.data.sources import SourceFile, github_url

SOURCE = SourceFile(
    "wiki_madlibs/preprocessed.csv.gz",
    github_url(
        "Media-Bias-Group/magpie-multi-task",
        "d9d216480164d5c1f878a83723b7e03ff7487371",
        "datasets/91_WikiMadlibs/preprocessed.csv",
    ),
    "sha256:e32915e8c3e5864e0d3e02940b6d83cd5fffa8c7ac7adf6df7a7f25a5873e074",
)
NAMING = re.compile(r"Being (?P<term>.+) is \S+\.")
SLOT = "[TERM]"
KEYS = {"1": True, "0": False}
Rows = np.ndarray


def load(files: Files) -> ItemTable:
    """Return the texts, whether they are toxic, and the identity term each names ("" if none).

    The cluster is the text with a slot in the term's place. A text without a key of 0 or 1 is malformed.
    """
    rows = files.rows(SOURCE)
    find = term_finder([row["text"] for row in rows])
    items: list[Item] = []
    malformed: list[Malformed] = []
    for number, row in enumerate(rows):
        text = row["text"].strip()
        if row["label"] not in KEYS or not text:
            malformed.append(Malformed(str(number), f"label {row['label']!r}" if text else "the text is empty"))
            continue
        term = find(text)
        cluster = re.sub(rf"\b{re.escape(term)}\b", SLOT, text) if term else text
        items.append(Item(str(number), text, (), cluster, {"harmful": KEYS[row["label"]], "term": term}))
    return ItemTable(tuple(items), tuple(malformed))


def term_finder(texts: list[str]) -> Callable[[str], str]:
    """Return what finds the identity term a text names, "" if none.

    The terms are those of the one template in which nothing but them and an adjective varies, "Being <term> is
    <adjective>."; all other templates have the term at their end, before the full stop, the longest that fits.
    """
    terms = {found["term"] for text in texts if (found := NAMING.fullmatch(text.strip()))}
    longest_first = sorted(terms, key=lambda term: (-len(term), term))
    at_end = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\.$") if terms else None

    def find(text: str) -> str:
        named = NAMING.fullmatch(text)
        if named is not None:
            return named["term"]
        ending = at_end.search(text) if at_end is not None else None
        return "" if ending is None else ending[1]

    return find


def subgroup_aucs(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return each term's AUC among its own texts, sorted by term, shape (num_terms, num_replicates)."""
    scores, toxic = sides(columns)
    return np.stack(
        [
            auc_between(scores[own & toxic], weights[own & toxic], scores[own & ~toxic], weights[own & ~toxic])
            for own in _by_term(columns)
        ]
    )


def bpsn_aucs(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return each term's AUC of toxic texts without it against harmless texts with it (Borkan et al. 2019).

    Low where naming the term makes a harmless text look toxic. Shape (num_terms, num_replicates).
    """
    scores, toxic = sides(columns)
    return _crossed(-scores, ~toxic, _by_term(columns), weights)


def bnsp_aucs(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return each term's AUC of toxic texts with it against harmless texts without it (Borkan et al. 2019).

    Low where naming the term makes a toxic text look harmless. Shape (num_terms, num_replicates).
    """
    scores, toxic = sides(columns)
    return _crossed(scores, toxic, _by_term(columns), weights)


def _crossed(scores: np.ndarray, upper: Rows, owns: list[Rows], weights: np.ndarray) -> np.ndarray:
    """Return P(a term's upper row scores above another's lower row): what is below it in all, less what is its own."""
    places, lower = np.flatnonzero(upper), ~upper
    below = mass_below(scores[lower], weights[lower], scores[upper])
    totals = weights[lower].sum(axis=0)
    found = []
    for own in owns:
        mine, other = own & upper, own & lower
        rest = below[own[places]] - mass_below(scores[other], weights[other], scores[mine])
        pairs = weights[mine].sum(axis=0) * (totals - weights[other].sum(axis=0))
        found.append(ratio((weights[mine] * rest).sum(axis=0), pairs))
    return np.stack(found)


def _by_term(columns: Columns) -> list[Rows]:
    terms = np.asarray(columns["label:term"], dtype=str)
    return [terms == term for term in sorted(set(terms.tolist()) - {""})]


def _lowest(aucs: Callable[[Columns, np.ndarray], np.ndarray]) -> Value:
    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        if len(_by_term(columns)) < 2:
            return np.full(weights.shape[1], np.nan)
        return np.asarray(aucs(columns, weights).min(axis=0))

    return value


def _equality_difference(*, toxic: bool) -> Value:
    """Return the sum over terms of |rate - rate of the term| (Dixon et al. 2018, section 5.2)."""

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        rows = sides(columns)[1] == toxic
        terms = np.asarray(columns["label:term"], dtype=str)[rows]
        if len(set(terms.tolist()) - {""}) < 2:
            return np.full(weights.shape[1], np.nan)
        wrong = 1.0 - np.asarray(columns["correct"], dtype=np.float64)[rows]
        overall = ratio(wrong @ weights[rows], weights[rows].sum(axis=0))
        return np.asarray(np.abs(rates_by(wrong, weights[rows], terms) - overall).sum(axis=0))

    return value


LOWEST = "the term that is treated worst is treated better: its"
METRICS = (
    Metric(
        "lowest_bpsn_auc",
        _lowest(bpsn_aucs),
        BIAS,
        f"{LOWEST} harmless texts score below toxic texts of other terms more often",
    ),
    Metric(
        "lowest_bnsp_auc",
        _lowest(bnsp_aucs),
        BIAS,
        f"{LOWEST} toxic texts score above harmless texts of other terms more often",
    ),
    Metric("lowest_subgroup_auc", _lowest(subgroup_aucs), BIAS, f"{LOWEST} toxic texts score above its harmless ones"),
    Metric(
        "false_positive_equality_difference",
        _equality_difference(toxic=False),
        BIAS,
        "terms differ more in how often their harmless texts are called toxic",
        neutral=0.0,
        magnitude=True,
    ),
    Metric(
        "false_negative_equality_difference",
        _equality_difference(toxic=True),
        BIAS,
        "terms differ more in how often their toxic texts are missed",
        neutral=0.0,
        magnitude=True,
    ),
    Metric("accuracy", mean_of("correct"), CAPABILITY, "more texts are told right", chance=0.5, flips="correct"),
    Metric("auc", auc_of, CAPABILITY, "toxic texts score above harmless ones more often", chance=0.5),
)
BENCHMARKS = (
    Benchmark(
        name="wiki_madlibs",
        title="Wikipedia madlibs",
        load=load,
        readouts=(Readout("classes", CLASSIFIER, ask_harmful, judge_harmful, answers=PROBABILITIES),),
        metrics=METRICS,
        source="Dixon et al. Measuring and Mitigating Unintended Bias in Text Classification. AIES 2018.",
        licence="Apache-2.0",
        criticism=(
            "We know of none in what we read. Our own: texts are made from few short templates, so that results need "
            "not carry over to what people write."
        ),
        breakdown=("term",),
        files=(SOURCE,),
    ),
)
