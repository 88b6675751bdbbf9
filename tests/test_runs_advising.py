from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fairsisa.errors import ConfigError, RunError
from fairsisa.runs.advising import (
    LIMIT_SETTINGS,
    advise_partition,
    complete_settings,
    measured_needs,
    nearest_first,
    request_risks,
    shortfalls,
)
from fairsisa.runs.directory import Run
from fairsisa.settings import SimulationSettings
from fairsisa.sisa import formulas
from fairsisa.sisa.advice import Needs, advise, limits
from fairsisa.sisa.simulation import beta_risks, expected_costs, pareto_risks
from unlearning_cases import TABULAR, trained_in, tree_of

SOME = SimulationSettings(
    requests_per_day=3.0,
    num_examples=4_000,
    bytes_per_checkpoint=1_000,
    examples_per_second=50.0,
    shards=(1, 5),
    slices=(1, 4),
    windows=(1, 8, 120),
    num_trials=200,
)
NEEDS = Needs(4_000, 3.0, 50.0, 1_000, 30.0, max_bytes=20_000)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on a table whose examples have risks."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=200), "label": rng.integers(0, 2, 200), "risk": rng.random(200)})
    frame.to_csv(folder / "own.csv", index=False)
    columns = {"label": "label", "numeric": ["x"], "risk": "risk"}
    data = {"name": "own", "path": str(folder / "own.csv"), "columns": columns}
    return trained_in(folder, replace(TABULAR, data=data))


def advised(settings: SimulationSettings, folder: Path, **changes: Any) -> Any:
    return advise_partition(settings, root=folder, **changes)


def candidates(max_bytes: int | None = None, **changes: Any) -> tuple[pd.DataFrame, Needs]:
    needs = replace(NEEDS, max_bytes=max_bytes, **changes)
    return advise(needs, shards=(1, 5), slices=(1, 4), windows=(1, 120), num_trials=20).table, needs


def test_advice_is_that_of_the_engine_and_stands_on_a_page(tmp_path):
    found = advised(SOME, tmp_path, command="fairsisa plan simulate=uniform")
    table = advise(
        replace(NEEDS, max_bytes=None), shards=(1, 5), slices=(1, 4), windows=(1, 8, 120), num_trials=200
    ).table
    pd.testing.assert_frame_equal(found.content.candidates.head(1), table.head(1))
    assert sorted(found.content.candidates["core_seconds_per_day"]) == sorted(table["core_seconds_per_day"])
    assert (found.measured, found.shortfalls) == ((), ())
    assert found.page.parent.parent == tmp_path / "plans"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["plan.html", "plan.json"]
    assert "fairsisa plan simulate=uniform" in found.page.read_text()
    numbers = json.loads(found.numbers.read_text())
    assert numbers["recommended"] == numbers["candidates"][:1]
    assert numbers["settings"]["simulate"]["max_epochs"] == 3.0


def test_batches_hold_every_closed_form_beside_trials(tmp_path):
    batches = advised(replace(SOME, shards=(5,), slices=(4,), num_trials=2_000), tmp_path).content.batches
    assert batches["num_requests"].tolist() == [1, 2, 5, 10, 50, 100]
    for row in batches.to_dict("records"):
        given = {"num_requests": row["num_requests"], "num_shards": 5}
        whole = {"num_examples": 4_000, "max_epochs": 3.0}
        assert row["sequential"] == formulas.sequential_sharding(**given, **whole)
        assert row["batch"] == formulas.batch_sharding(**given, **whole)
        assert row["combined"] == formulas.combined_batch(**given, **whole, num_slices=4)
        each = formulas.slicing_request(shard_size=800, num_slices=4, max_epochs=3.0)
        assert row["slicing"] == row["num_requests"] * each
        # The closed form leaves the examples that go in the count.
        allowed = 4 * row["simulated_error"] + 3.0 * row["num_requests"]
        assert abs(row["simulated_cost"] - row["combined"]) <= allowed
        assert row["mean"] == pytest.approx(12_000 / row["simulated_cost"], rel=0.03)


def test_trials_take_the_kept_checkpoints_and_the_risks(tmp_path):
    one = replace(SOME, shards=(2,), slices=(4,), windows=(1,))
    every, few, skewed = (
        advised(settings, tmp_path).content.batches["simulated_cost"].iloc[0]
        for settings in (
            one,
            replace(one, max_bytes=2_000),
            replace(one, distribution="group_skewed", group_share=0.05, group_weight=0.9, strategy="risk_aware"),
        )
    )
    assert few == pytest.approx(6_000, rel=0.01)
    assert skewed < every < few


def test_the_same_settings_name_the_same_page_and_others_another(tmp_path):
    quick = replace(SOME, shards=(1,), slices=(1,), windows=(1,), num_trials=10)
    first, again = (advised(quick, tmp_path) for _ in range(2))
    assert first.page == again.page
    assert json.loads(first.numbers.read_text()) == json.loads(again.numbers.read_text())
    for other in (replace(quick, seed=1), replace(quick, requests_per_day=4.0)):
        assert advised(other, tmp_path).page != first.page
    assert advised(quick, tmp_path, num_workers=2).page != first.page
    assert advised(replace(quick, out=str(tmp_path / "mine")), tmp_path).page == tmp_path / "mine" / "plan.html"


def test_what_is_not_asked_for_is_read_from_the_run(run, tmp_path):
    before = tree_of(run.directory)
    asked = replace(
        SOME, num_examples=None, bytes_per_checkpoint=None, examples_per_second=None, shards=(2,), windows=(1, 2)
    )
    found = advised(asked, tmp_path, run=run)
    frame = run.examples.frame
    names = {step for steps in run.ensemble.checkpoints.values() for step in steps}
    assert found.settings.num_examples == (frame["split"] == "train").sum()
    assert found.settings.bytes_per_checkpoint == max(run.store.manifest(name).num_bytes for name in names)
    rows = pd.read_csv(run.path("training.csv"))
    rows = rows[rows["shard"].str.startswith("shard-")]
    assert rows["examples_per_second"].min() <= found.settings.examples_per_second
    assert found.settings.examples_per_second <= rows["examples_per_second"].max()
    assert found.settings.max_epochs == run.settings.trainer.max_epochs == 1.0
    assert found.measured == ("num_examples", "bytes_per_checkpoint", "examples_per_second", "max_epochs")
    assert f"measured in {run.directory}" in found.page.read_text()
    assert tree_of(run.directory) == before


def test_what_is_asked_for_wins_over_the_run(run, tmp_path):
    found = advised(replace(SOME, max_epochs=7.0), tmp_path, run=run)
    assert (found.measured, found.settings.max_epochs, found.settings.num_examples) == ((), 7.0, 4_000)
    partly = complete_settings(replace(SOME, num_examples=None), run)
    assert (partly.num_examples, partly.bytes_per_checkpoint) == (slices_of(run), 1_000)


def slices_of(run: Run) -> int:
    return len(run.partition.example_ids)


def test_another_budget_is_taken_at_its_total_work(run, tmp_path, monkeypatch):
    settings = run.settings
    trainer = replace(settings.trainer, budget="per_slice", max_epochs=2.0)
    monkeypatch.setattr(Run, "settings", property(lambda _: replace(settings, trainer=trainer)))
    # Three slices: 2 epochs of 1/3, 2/3 and 3/3 of the shard are 4 epochs of it.
    assert measured_needs(run)["max_epochs"] == pytest.approx(4.0)


def test_what_only_a_person_can_know_is_asked_for(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"Set simulate.requests_per_day=\.\.\., simulate.num_examples=.*tells all"):
        complete_settings(SimulationSettings(), None)
    with pytest.raises(ConfigError, match=r"^Set simulate.requests_per_day=...: only you can know.$"):
        complete_settings(SimulationSettings(), run)
    monkeypatch.setattr("fairsisa.runs.advising.measured_speed", lambda _: None)
    with pytest.raises(ConfigError, match=r"simulate.examples_per_second=\.\.\.: .* has no record of its speed"):
        complete_settings(SimulationSettings(requests_per_day=1.0), run)
    with pytest.raises(RunError, match="train it first"):
        complete_settings(SOME, Run(tmp_path / "nowhere"))


def test_risks_of_the_run_are_those_of_its_training_examples(run, tmp_path):
    asked = replace(SOME, distribution="risk_weighted", num_examples=None)
    frame = run.examples.frame
    found = request_risks(complete_settings(asked, run), run)
    assert found is not None
    assert found.tolist() == frame.loc[frame["split"] == "train", "risk"].tolist()
    with pytest.raises(ConfigError, match=r"but simulate.num_examples=4000 was asked for: leave that out"):
        advised(replace(asked, num_examples=4_000), tmp_path, run=run)
    with pytest.raises(ConfigError, match=r"simulate.risks=run reads the risks of a run: set run="):
        advised(replace(asked, num_examples=4_000, risks="run"), tmp_path)


def test_a_run_without_risks_says_so(run, monkeypatch):
    examples = run.examples
    bare = replace(examples, frame=examples.frame.drop(columns="risk"))
    monkeypatch.setattr(Run, "examples", property(lambda _: bare))
    asked = complete_settings(replace(SOME, distribution="risk_weighted", num_examples=None), run)
    with pytest.raises(ConfigError, match=r"have no column 'risk': set simulate.risks=pareto or beta instead"):
        request_risks(asked, run)


@pytest.mark.parametrize(
    ("changes", "quantile"),
    [
        ({"risks": "pareto", "pareto_index": 1.5}, lambda q: stats.pareto.ppf(q, 1.5)),
        ({"risks": "beta", "beta_shape": (2.0, 3.0)}, lambda q: stats.beta.ppf(q, 2.0, 3.0)),
        ({}, lambda q: stats.pareto.ppf(q, 1.16)),
    ],
)
def test_shapes_are_those_of_scipy(changes, quantile):
    asked = complete_settings(replace(SOME, distribution="risk_weighted", num_examples=101, **changes), None)
    risks = np.sort(request_risks(asked, None))
    wanted = quantile((np.arange(101) + 0.5) / 101)
    np.testing.assert_allclose(risks / risks[-1], wanted / wanted[-1], rtol=1e-9)
    assert 0 < risks[0] <= risks[-1] <= 1


def test_a_fifth_of_pareto_examples_makes_about_four_fifths_of_requests():
    risks = pareto_risks(1_000_000, index=np.log(5) / np.log(4))
    assert risks[:200_000].sum() / risks.sum() == pytest.approx(0.8, abs=0.03)


@given(st.integers(2, 60), st.floats(0.2, 20), st.floats(0.2, 20))
def test_beta_risks_ascend_within_0_and_1(num_examples, first, second):
    risks = beta_risks(num_examples, shape=(first, second))
    assert (np.diff(risks) >= 0).all()
    assert risks[0] >= 0
    assert risks[-1] <= 1


def test_even_requests_have_no_risks_and_a_group_makes_its_share():
    assert request_risks(complete_settings(SOME, None), None) is None
    asked = replace(SOME, distribution="group_skewed", group_share=0.25, group_weight=0.75)
    risks = request_risks(complete_settings(asked, None), None)
    assert risks[-1_000:].sum() / risks.sum() == pytest.approx(0.75)


@given(
    st.integers(1, 40_000),
    st.floats(0.001, 60),
    st.floats(0.01, 300),
    st.integers(1, 3),
)
def test_shortfalls_name_the_binding_limits_and_the_nearest_miss(max_bytes, delay, rate, cores):
    table, needs = candidates(max_bytes, max_delay_days=delay, requests_per_day=rate, num_cores=cores)
    told = shortfalls(table, needs)
    ratios = {column: [value / most for value in table[column]] for column, most, _ in limits(needs)}
    assert bool(told) == (not table["feasible"].any())
    for column, setting in LIMIT_SETTINGS.items():
        binds = bool(told) and min(ratios[column]) > 1
        assert binds == any(line.startswith(f"{setting} binds: every candidate needs at least ") for line in told)
    worst = [max(each) for each in zip(*ratios.values(), strict=True)]
    order = nearest_first(table, needs)
    if told:
        nearest = order.iloc[0]
        assert nearest["reason"] in told[-1]
        assert max(nearest[column] / most for column, most, _ in limits(needs)) == min(worst)
    count = int(table["feasible"].sum())
    pd.testing.assert_frame_equal(order.head(count), table.head(count))
    assert sorted(map(str, order.to_dict("records"))) == sorted(map(str, table.to_dict("records")))


def test_a_miss_is_told_in_its_unit():
    table, needs = candidates(900)
    assert shortfalls(table, needs) == (
        "simulate.max_bytes binds: every candidate needs at least 1,000 bytes of checkpoints, 1.11 times the 900 "
        "allowed.",
        "The nearest, 1 shard, 4 slices, 1 at a time, needs 1,000 bytes of checkpoints, at most 900 allowed: 100 bytes "
        "of checkpoints too much.",
    )


def test_limits_that_no_candidate_meets_at_once_are_told():
    table, needs = candidates(1_000, requests_per_day=300.0)
    table = table[(table["num_shards"] == 5) | (table["window"] == 120)]
    needs = replace(needs, max_delay_days=0.1)
    table = table.assign(feasible=False, reason="of both")
    assert shortfalls(table, needs)[0] == "Every limit is met by some candidate, but no candidate meets all at once."


def test_settings_that_leave_no_candidate_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"two examples a slice .* half of the 6 examples .* name fewer shards"):
        advised(replace(SOME, num_examples=6, shards=(4,)), tmp_path)
    few = advised(replace(SOME, num_examples=6, windows=(1, 2, 3, 4)), tmp_path)
    assert set(zip(few.content.candidates["num_shards"], few.content.candidates["num_slices"], strict=True)) == {(1, 1)}
    assert set(few.content.candidates["window"]) == {1, 2, 3}
    assert few.content.batches["num_requests"].tolist() == [1, 2]
    assert not list(tmp_path.glob("*.html"))


def test_costs_of_one_request_agree_where_they_must():
    costs = expected_costs(1_000, num_shards=5, num_slices=1, num_requests=1, max_epochs=2.0)
    assert costs["slicing"] == pytest.approx(costs["combined"])
    assert costs["batch"] == pytest.approx(costs["sequential"]) == pytest.approx(2.0 * (200 - 1), abs=1.0)
