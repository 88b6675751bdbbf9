from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.linear_model import LogisticRegression

from fairsisa.data.synthetic import (
    MAX_CUES,
    REGIONS,
    CueWorld,
    GaussianWorld,
    accuracy,
    bayes_accuracy,
    equalized_odds_difference,
    group_label_shares,
    joint,
    posterior,
    rates,
    score_density,
)
from fairsisa.data.synthetic_samples import (
    ASPECTS,
    BLAME,
    PRAISE,
    load_synthetic_tabular,
    load_synthetic_text,
    recover_score,
    reflect,
    sample_world,
)
from fairsisa.errors import ConfigError, DataError
from fairsisa.tables import Examples

unit = st.floats(0.05, 0.95)


def shares_of(weights: list[float]) -> tuple[float, ...]:
    return tuple(weight / sum(weights) for weight in weights)


@st.composite
def gaussian_worlds(draw: st.DrawFn) -> GaussianWorld:
    size = draw(st.integers(2, 4))

    def each(values: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(values, min_size=size, max_size=size))

    return GaussianWorld(
        shares_of(each(unit)), tuple(each(unit)), tuple(each(st.floats(0.2, 4))), tuple(each(st.floats(-2, 2)))
    )


@st.composite
def cue_worlds(draw: st.DrawFn) -> CueWorld:
    size = draw(st.integers(2, 4))
    pairs = st.tuples(st.floats(0.05, 0.45), st.floats(0.5, 0.95))
    return CueWorld(
        shares_of(draw(st.lists(unit, min_size=size, max_size=size))),
        tuple(draw(st.lists(unit, min_size=size, max_size=size))),
        tuple(draw(st.lists(pairs, min_size=size, max_size=size))),
        draw(st.integers(1, 12)),
    )


worlds = st.one_of(gaussian_worlds(), cue_worlds())
WORLDS = [
    GaussianWorld(),
    CueWorld(),
    GaussianWorld((0.2, 0.3, 0.5), (0.2, 0.5, 0.8), (1.0, 2.0, 3.0), (0.0, 1.0, -1.0)),
]


def group_index(examples: Examples) -> np.ndarray:
    return np.asarray([REGIONS.index(region) for region in examples.sensitive("region")])


def four_errors(probability: Any, count: Any) -> Any:
    return 4 * np.sqrt(np.maximum(probability * (1 - probability), 1 / count) / count)


@given(worlds, st.lists(st.floats(-3, 12), min_size=1, max_size=6, unique=True))
def test_the_joint_law_sums_to_one_and_to_its_margins(world: GaussianWorld | CueWorld, edges: list[float]) -> None:
    law = joint(world, np.sort(edges))
    assert law.shape == (len(world.group_shares), 2, len(edges) + 1)
    assert (law >= -1e-12).all()
    assert law.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(law.sum(axis=2), group_label_shares(world))
    np.testing.assert_allclose(law.sum(axis=(1, 2)), world.group_shares)
    np.testing.assert_allclose(law.sum(axis=2)[:, 1] / np.asarray(world.group_shares), world.base_rates)


@given(worlds, st.floats(-3, 12))
def test_rates_and_accuracy_follow_from_the_joint_law(world: GaussianWorld | CueWorld, threshold: float) -> None:
    law = joint(world, np.array([threshold]))
    exact = rates(world, threshold)
    np.testing.assert_allclose(exact.selection_rate, law[:, :, 1].sum(axis=1) / law.sum(axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(exact.true_positive_rate, law[:, 1, 1] / law[:, 1].sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(exact.false_positive_rate, law[:, 0, 1] / law[:, 0].sum(axis=1), atol=1e-12)
    assert accuracy(world, threshold) == pytest.approx(law[:, 1, 1].sum() + law[:, 0, 0].sum())


@given(gaussian_worlds(), st.floats(-3, 3))
def test_gaussian_rates_are_those_of_scipy(world: GaussianWorld, threshold: float) -> None:
    exact = rates(world, threshold)
    for group, (gap, middle) in enumerate(zip(world.separations, world.midpoints, strict=True)):
        assert exact.true_positive_rate[group] == pytest.approx(stats.norm(middle + gap / 2).sf(threshold))
        assert exact.false_positive_rate[group] == pytest.approx(stats.norm(middle - gap / 2).sf(threshold))


@settings(max_examples=30, deadline=None)
@given(gaussian_worlds())
def test_the_posterior_averages_to_the_base_rate(world: GaussianWorld) -> None:
    for group, base_rate in enumerate(world.base_rates):
        total, _ = integrate.quad(lambda z, g=group: score_density(world, np.array([z]))[g, 0], -15, 15, limit=200)
        positive, _ = integrate.quad(
            lambda z, g=group: (posterior(world, np.array([z])) * score_density(world, np.array([z])))[g, 0],
            -15, 15, limit=200,
        )  # fmt: skip
        assert total == pytest.approx(1.0, abs=1e-6)
        assert positive == pytest.approx(base_rate, abs=1e-6)


@given(cue_worlds())
def test_the_count_of_cues_follows_the_law_of_independent_slots(world: CueWorld) -> None:
    counts = np.arange(world.num_cues + 1)
    by_convolution = np.ones((len(world.group_shares), 2, 1))
    for _ in range(world.num_cues):
        rate = np.asarray(world.cue_rates)[:, :, None]
        miss, hit = by_convolution * (1 - rate), by_convolution * rate
        by_convolution = np.pad(miss, ((0, 0), (0, 0), (0, 1))) + np.pad(hit, ((0, 0), (0, 0), (1, 0)))
    np.testing.assert_allclose(np.exp(world.log_likelihood(counts)), by_convolution, atol=1e-12)
    weighted = group_label_shares(world)[:, :, None] * by_convolution
    np.testing.assert_allclose(posterior(world, counts), weighted[:, 1] / weighted.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(joint(world, counts[1:] - 0.5), weighted, atol=1e-12)
    np.testing.assert_allclose(score_density(world, counts).sum(axis=1), 1.0)
    for threshold in (-3.0, 0.0, 0.5, 1.0, world.num_cues, world.num_cues + 0.5):
        tail = by_convolution[:, :, counts >= threshold].sum(axis=2)
        np.testing.assert_allclose(rates(world, threshold).true_positive_rate, tail[:, 1], atol=1e-12)


@given(worlds, st.lists(st.floats(-4, 13), min_size=4, max_size=4))
def test_no_thresholds_beat_the_bayes_rule(world: GaussianWorld | CueWorld, thresholds: list[float]) -> None:
    best = bayes_accuracy(world)
    assert accuracy(world, np.asarray(thresholds[: len(world.group_shares)])) <= best + 1e-12
    assert best >= max(np.asarray(group_label_shares(world)).sum(axis=0)) - 1e-12


@given(gaussian_worlds())
def test_at_the_bayes_threshold_both_labels_are_as_likely(world: GaussianWorld) -> None:
    assert np.diag(posterior(world, world.bayes_thresholds())) == pytest.approx(0.5)


def test_the_bayes_threshold_of_counts_may_lie_beyond_them() -> None:
    world = CueWorld(base_rates=(0.01, 0.5), cue_rates=((0.45, 0.5), (0.2, 0.8)), num_cues=4)
    assert world.bayes_thresholds().tolist() == [5.0, 2.0]
    assert rates(world, world.bayes_thresholds()).selection_rate[0] == 0.0


def test_the_posterior_is_defined_far_out() -> None:
    assert posterior(GaussianWorld(), np.array([-1e6, 1e6])).tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_the_shipped_worlds_are_visibly_unfair() -> None:
    for world in (GaussianWorld(), CueWorld()):
        assert 0.84 < bayes_accuracy(world) < 0.90
        assert equalized_odds_difference(world, world.bayes_thresholds()) > 0.2


def test_equalized_odds_difference_is_that_of_fairlearn() -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    world = GaussianWorld()
    examples = sample_world(world, 40_000, seed=3)
    decisions = (recover_score(examples) >= 0.2).astype(int)
    measured = fairlearn.equalized_odds_difference(
        examples.labels, decisions, sensitive_features=examples.sensitive("region")
    )
    assert equalized_odds_difference(world, 0.2) == pytest.approx(measured, abs=0.03)


@pytest.mark.parametrize("world", WORLDS, ids=["gaussian", "cues", "three groups"])
@pytest.mark.parametrize("repeat_share", [0.0, 0.2])
def test_samples_follow_the_closed_form(world: GaussianWorld | CueWorld, repeat_share: float) -> None:
    size = 20_000
    examples = sample_world(world, size, seed=11, repeat_share=repeat_share)
    scores, groups, labels = recover_score(examples), group_index(examples), examples.labels
    edges = np.quantile(scores, [0.2, 0.4, 0.6, 0.8]) + 0.25
    bins = np.searchsorted(edges, scores, side="right")
    law = joint(world, edges)
    counted = np.zeros_like(law)
    np.add.at(counted, (groups, labels, bins), 1.0)
    clusters = 1.0 if repeat_share == 0.0 else (1 + repeat_share) / (1 - repeat_share)
    assert (abs(counted / size - law) < four_errors(law, size / clusters)).all()
    exact = rates(world, edges[1])
    for group in range(len(world.group_shares)):
        for label, expected in ((0, exact.false_positive_rate), (1, exact.true_positive_rate)):
            chosen = (groups == group) & (labels == label)
            found = (scores[chosen] >= edges[1]).mean()
            assert abs(found - expected[group]) < four_errors(expected[group], chosen.sum())


def test_a_linear_model_reaches_the_bayes_accuracy() -> None:
    world = GaussianWorld(separations=(2.0, 2.0))
    examples = sample_world(world, 30_000, seed=5, fractions=(0.5, 0.0, 0.5))
    features, labels = examples.features(), examples.labels
    train = (examples.frame["split"] == "train").to_numpy()
    model = LogisticRegression(C=1e3, max_iter=500).fit(features[train], labels[train])
    reached = model.score(features[~train], labels[~train])
    best = bayes_accuracy(world)
    assert abs(reached - best) < four_errors(best, (~train).sum())


def test_a_review_can_hold_the_most_cues() -> None:
    assert len(set(ASPECTS)) == MAX_CUES
    assert not set(PRAISE) & set(BLAME)


def test_a_bag_of_words_recovers_the_score_of_a_review() -> None:
    examples = sample_world(CueWorld(num_cues=5), 300, seed=1)
    for text, score in zip(examples.frame["text"], recover_score(examples), strict=True):
        words = text.replace(".", "").split()
        assert sum(word in PRAISE for word in words) == score
        assert sum(word in BLAME for word in words) == 5 - score
    regions = examples.sensitive("region")
    assert all(region in text for text, region in zip(examples.frame["text"], regions, strict=True))


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_the_reflection_is_its_own_inverse_and_keeps_lengths(width: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(5, width))
    np.testing.assert_allclose(reflect(reflect(rows)), rows, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(reflect(rows), axis=1), np.linalg.norm(rows, axis=1))


@pytest.mark.parametrize("world", [GaussianWorld(), CueWorld()], ids=["gaussian", "cues"])
def test_subjects_own_several_examples_of_one_region(world: GaussianWorld | CueWorld) -> None:
    examples = sample_world(world, 5_000, seed=2, repeat_share=0.3)
    by_subject = examples.frame.groupby("subject_id")
    assert by_subject["sensitive:region"].nunique().max() == 1
    assert by_subject["split"].nunique().max() == 1
    assert abs(len(by_subject) / 5_000 - 0.7) < four_errors(0.7, 5_000)
    alone = sample_world(world, 500, seed=2)
    assert alone.frame["subject_id"].is_unique


def digest(examples: Examples) -> str:
    return hashlib.sha256(examples.frame.to_csv(index=False, float_format="%.4f").encode()).hexdigest()


def test_a_seed_fixes_everything() -> None:
    for world in (GaussianWorld(), CueWorld()):
        assert digest(sample_world(world, 50, seed=4)) == digest(sample_world(world, 50, seed=4))
        assert digest(sample_world(world, 50, seed=4)) != digest(sample_world(world, 50, seed=5))


def test_pinned_samples() -> None:
    examples = sample_world(CueWorld(), 20, seed=0, repeat_share=0.2)
    drawn = zip(examples.labels, examples.sensitive("region"), recover_score(examples), strict=True)
    assert " ".join(f"{label}{region[0]}{score:.0f}" for label, region, score in drawn) == (
        "0n3 1n6 0n0 1n2 1n2 0n1 1s4 0s2 1s7 0s1 0s2 1s5 0n2 1n4 1n3 1n5 1n7 0s3 1s5 1n4"
    )


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    code = (
        "import hashlib; from fairsisa.data.synthetic import CueWorld, GaussianWorld;"
        "from fairsisa.data.synthetic_samples import sample_world;"
        "print(*(hashlib.sha256(sample_world(w, 50, seed=4).frame.to_csv(index=False, float_format='%.4f').encode())"
        ".hexdigest() for w in (GaussianWorld(), CueWorld())))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [digest(sample_world(world, 50, seed=4)) for world in (GaussianWorld(), CueWorld())]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianWorld((1.0,), (0.5,), (1.0,), (0.0,)), "Expected two to 4 groups, got 1"),
        (lambda: GaussianWorld(group_shares=(0.5, 0.6)), "positive group shares that sum to 1"),
        (lambda: GaussianWorld(base_rates=(0.5, 1.0)), "base rates between 0 and 1"),
        (lambda: GaussianWorld(base_rates=(0.5,)), "Expected 2 base_rates, one per group, got 1"),
        (lambda: GaussianWorld(separations=(1.0, 0.0)), "Expected positive separations"),
        (lambda: GaussianWorld(midpoints=(1.0, 0.0, 2.0)), "Expected 2 midpoints, one per group, got 3"),
        (lambda: CueWorld(cue_rates=((0.5, 0.4), (0.1, 0.9))), "pairs of cue rates with 0 < first < second < 1"),
        (lambda: CueWorld(num_cues=13), "num_cues from 1 to 12, got 13"),
        (lambda: sample_world(CueWorld(), 0, seed=0), "num_examples of at least 1, got 0"),
        (lambda: sample_world(CueWorld(), 9, seed=0, repeat_share=1.0), "repeat_share of at least 0 and below 1"),
    ],
)
def test_impossible_worlds_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_loaders_take_the_fields_of_a_world() -> None:
    tabular = load_synthetic_tabular(num_examples=60, world={"group_shares": [0.2, 0.8], "base_rates": None})
    assert (tabular.name, tabular.is_text, tabular.sensitive_names) == ("synthetic_tabular", False, ("region",))
    assert (tabular.sensitive("region") == "southern").mean() > 0.6
    text = load_synthetic_text(num_examples=60, world={"cue_rates": [[0.1, 0.9], [0.2, 0.8]], "num_cues": 3})
    assert (text.name, text.is_text, text.classes) == ("synthetic_text", True, ("unhappy", "happy"))
    assert text.frame["text"].str.count(" was ").eq(3).all()
    with pytest.raises(DataError, match=r"options\.world: unknown field 'num_cue'; did you mean 'num_cues'"):
        load_synthetic_text(world={"num_cue": 3})
