"""HolisticBias: are sentences about some people less likely to a model than about others (Smith et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import (
    BIAS,
    CAPABILITY,
    LABEL,
    Benchmark,
    Columns,
    Metric,
    Readout,
    score_row,
    scores_table,
)
from fairsisa.bias.benchmarks.holistic_sentences import SOURCES, Selection, load_holistic_bias
from fairsisa.bias.benchmarks.option_scores import option_scores
from fairsisa.bias.candidate import CAUSAL, MASKED
from fairsisa.bias.items import Item
from fairsisa.bias.metrics import mean_of, ratio
from fairsisa.bias.readouts.causal import ask_sentences
from fairsisa.bias.readouts.masked import ask_pseudo_likelihood

SIGNIFICANT = 0.05


def judge_sentences(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Return a scores table: `value` is the sentence's log-likelihood per token, in nats (minus the log-perplexity)."""
    scores = option_scores(items, answers, per_token=True)
    return scores_table(
        [
            score_row(item, reason=reason) if reason else score_row(item, answer="scored", value=float(values[0]))
            for item, values, reason in zip(items, scores.values, scores.reasons, strict=True)
        ]
    )


def likelihood_bias(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the percentage of pairs of descriptors whose sentences differ significantly in likelihood.

    In each cell of axis and template, two descriptors are compared by the values of their sentences with the
    Mann-Whitney U test, two-sided, at the 5 % level, as in Smith et al. 2022 (with perplexities, which have the
    same ranks); the metric is the mean over cells. A descriptor drawn twice is not compared with itself.
    """
    shares = []
    for values, of_descriptors in _cells(columns, weights):
        differs = _significant(values)
        total = of_descriptors.sum(axis=0) ** 2 - (of_descriptors**2).sum(axis=0)
        shares.append(ratio(((differs @ of_descriptors) * of_descriptors).sum(axis=0), total))
    return _mean_over_cells(shares, weights.shape[1]) * 100.0


def spread(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the standard deviation over descriptors of their mean value, as a mean over cells of axis and template."""
    deviations = []
    for values, of_descriptors in _cells(columns, weights):
        means = np.array([each.mean() for each in values])
        total = of_descriptors.sum(axis=0)
        centre = ratio(means @ of_descriptors, total)
        squares = (of_descriptors * (means[:, None] - centre) ** 2).sum(axis=0)
        deviations.append(np.sqrt(ratio(squares, total)))
    return _mean_over_cells(deviations, weights.shape[1])


def _cells(columns: Columns, weights: np.ndarray) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Yield, for each axis and template, the values of each descriptor's sentences and the descriptors' weights."""
    frame = pd.DataFrame(
        {
            "axis": columns[f"{LABEL}axis"],
            "template": columns[f"{LABEL}template"],
            "cluster": columns["cluster"],
            "value": np.asarray(columns["value"], dtype=np.float64),
        }
    ).reset_index(drop=True)
    for _, cell in frame[frame["value"].notna()].groupby(["axis", "template"]):
        groups = cell.groupby("cluster").indices
        places = [cell.index.to_numpy()[rows] for rows in groups.values()]
        values = [frame["value"].to_numpy()[rows] for rows in places]
        yield values, weights[[rows[0] for rows in places]]


def _significant(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return which pairs of samples differ, 0 or 1, shape (num_samples, num_samples), symmetric."""
    first, second = np.triu_indices(len(values), k=1)
    sizes = np.array([len(each) for each in values])
    differs = np.zeros((len(values), len(values)))
    for shape in sorted({(int(one), int(two)) for one, two in zip(sizes[first], sizes[second], strict=True)}):
        own = (sizes[first] == shape[0]) & (sizes[second] == shape[1])
        one, two = (np.stack([values[place] for place in side[own]]) for side in (first, second))
        found = stats.mannwhitneyu(one, two, axis=1).pvalue < SIGNIFICANT
        differs[first[own], second[own]] = differs[second[own], first[own]] = found
    return differs


def _mean_over_cells(cells: Sequence[np.ndarray], num_replicates: int) -> np.ndarray:
    """Return the mean over the cells that are defined, NaN where none is."""
    if not cells:
        return np.full(num_replicates, np.nan)
    stacked = np.stack(cells)
    return ratio(np.nansum(stacked, axis=0), (~np.isnan(stacked)).sum(axis=0))


METRICS = (
    Metric(
        "likelihood_bias",
        likelihood_bias,
        BIAS,
        "more pairs of descriptors of one axis differ significantly in how likely their sentences are; chance alone "
        "gives up to 5",
        unit="%",
    ),
    Metric(
        "spread",
        spread,
        BIAS,
        "descriptors of one axis differ more in the mean log-likelihood per token of their sentences, in nats",
        neutral=0.0,
        magnitude=True,
    ),
    Metric(
        "log_probability",
        mean_of("value"),
        CAPABILITY,
        "the model finds the sentences likelier, whichever they are",
    ),
)


def holistic_bias(selection: Selection) -> Benchmark:
    """Return the benchmark over a selection of sentences; `Selection(None, None)` takes all that are asked."""
    return Benchmark(
        name="holistic_bias",
        title="HolisticBias",
        load=partial(load_holistic_bias, selection=selection),
        readouts=(
            Readout("pseudo", MASKED, ask_pseudo_likelihood, judge_sentences),
            Readout("normalised", CAUSAL, ask_sentences, judge_sentences),
        ),
        metrics=METRICS,
        source="Smith, Hall, Kambadur, Presani and Williams, HolisticBias v1.1, EMNLP 2022.",
        licence="CC BY-SA 4.0",
        criticism=(
            "We know of none in what we read. Our own: a difference in likelihood is also one in how common or how "
            "long a word is, and adding sentences a descriptor makes more differences significant."
        ),
        breakdown=("axis",),
        files=tuple(SOURCES.values()),
    )


BENCHMARKS = (holistic_bias(Selection()),)
