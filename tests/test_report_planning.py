from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import DataError
from fairsisa.report.content import Fact
from fairsisa.report.planning import (
    PlanningReport,
    batches_table,
    candidates_table,
    findings,
    plan_json,
    write_plan,
)
from fairsisa.report.planning_plots import cost_by_shards, size_words, speed_up_by_batch, storage_and_cost
from fairsisa.report.style import VERMILION, series_colours
from fairsisa.report.svg import inline_svg
from fairsisa.sisa.advice import Needs, advise
from fairsisa.sisa.simulation import compare_batches
from test_report_page import EVIL, Page
from test_report_plots import words

NEEDS = Needs(10_000, 5.0, 100.0, 1_000_000, 3.0, max_bytes=30_000_000)


@pytest.fixture(scope="module")
def candidates():
    return advise(NEEDS, shards=(1, 5, 10), slices=(1, 4), windows=(1, 4, 8, 32), num_trials=50).table


@pytest.fixture(scope="module")
def batches():
    return compare_batches(2_000, num_shards=5, num_slices=4, batch_sizes=(1, 4, 16), num_trials=200)


@pytest.fixture
def content(candidates, batches):
    return PlanningReport(
        title="What if",
        candidates=candidates,
        batches=batches,
        batches_of="with 5 shards of 4 slices",
        facts=(Fact("Requests per day", "5", "as measured"),),
        settings={"needs": {"max_delay_days": 3.0}},
        commands=("fairsisa simulate",),
    )


def curve(ax, colour):
    """The first line of that colour, as (x, y) rows."""
    line = next(line for line in ax.get_lines() if line.get_color() == colour)
    return np.column_stack([line.get_xdata(), line.get_ydata()]).tolist()


def scattered(ax):
    """Every dot drawn by a scatter, and whether it is filled."""
    return [
        (tuple(place), len(group.get_facecolor()) > 0)
        for group in ax.collections
        if len(group.get_offsets()) and group.get_paths()
        for place in np.asarray(group.get_offsets()).tolist()
    ]


def test_cost_has_a_panel_a_window_and_a_line_a_number_of_slices(candidates):
    figure = cost_by_shards(candidates)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "1 request at a time",
        "8 requests at a time",
        "32 requests at a time",
    ]
    assert {"1 slice", "4 slices", "shards", "example-epochs per request"} <= set(words(figure))
    for ax, window in zip(figure.axes, (1, 8, 32), strict=True):
        for number, colour in zip((1, 4), series_colours(2), strict=True):
            rows = candidates[(candidates["window"] == window) & (candidates["num_slices"] == number)]
            wanted = rows.sort_values("num_shards")[["num_shards", "example_epochs_per_request"]].to_numpy().tolist()
            assert curve(ax, colour) == wanted


def test_storage_shows_every_candidate_and_rings_the_recommended_one(candidates):
    figure = storage_and_cost(candidates)
    ax = figure.axes[0]
    drawn = scattered(ax)
    assert len(drawn) == len(candidates)
    assert sum(filled for _, filled in drawn) == candidates["feasible"].sum()
    ring = next(line for line in ax.get_lines() if line.get_markersize() > 10)
    best = candidates[candidates["feasible"]].iloc[0]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (best["storage_bytes"], best["core_seconds_per_day"])
    front = np.column_stack([ax.get_lines()[0].get_xdata(), ax.get_lines()[0].get_ydata()])
    for x, y in candidates.loc[candidates["feasible"], ["storage_bytes", "core_seconds_per_day"]].to_numpy():
        assert any(a <= x and b <= y for a, b in front)


def test_speed_up_lays_trials_over_the_closed_form(batches):
    figure = speed_up_by_batch(batches)
    ax = figure.axes[0]
    assert curve(ax, VERMILION) == batches[["num_requests", "expected"]].to_numpy().tolist()
    means = next(line for line in ax.get_lines() if line.get_label() == "Monte Carlo mean")
    assert means.get_ydata().tolist() == batches["mean"].tolist()
    assert {"best", "worst", "expected, closed form", "middle 90 %"} <= set(words(figure))


def test_plots_are_drawn_when_no_candidate_is_feasible_and_when_there_is_one_alone(candidates):
    none = candidates.assign(feasible=False)
    for table in (none, candidates.head(1), none.head(1)):
        for figure in (cost_by_shards(table), storage_and_cost(table)):
            assert inline_svg(figure, name="x", description="y").startswith("<svg")


def test_findings_name_the_recommended_candidate_or_what_stands_in_the_way(content, candidates):
    told = findings(content)
    best = candidates.iloc[0]
    assert told[0].startswith(f"Recommended: {best['num_shards']} shards, {best['num_slices']} slice")
    assert f"train {best['example_epochs_per_request']:,.0f} examples again" in told[1]
    none = candidates.assign(feasible=False, reason="needs 4 days of delay, at most 3 allowed")
    told = findings(replace(content, candidates=none))
    assert told[0] == "None of 24 candidates meets the limits."
    assert told[1].endswith("needs 4 days of delay, at most 3 allowed.")


def test_tables_have_a_row_a_candidate_and_a_batch_size(candidates, batches):
    table = candidates_table(candidates)
    assert len(table.rows) == 24
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [row[1].text == "within" for row in table.rows] == candidates["feasible"].tolist()
    table = batches_table(batches)
    assert [row[0].text for row in table.rows] == ["1", "4", "16"]
    assert table.rows[0][1].text == f"{batches['best'].iloc[0]:.2f}"


def test_the_page_stands_alone_and_the_numbers_are_beside_it(tmp_path, content, candidates):
    page, numbers = write_plan(tmp_path / "new" / "folder", content)
    assert sorted(path.name for path in page.parent.iterdir()) == ["plan.html", "plan.json"]
    text = page.read_text(encoding="utf-8")
    seen = Page(text)
    assert seen.open == []
    assert not {"script", "img", "link", "iframe"} & set(seen.tags)
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert seen.tags.count("figure") == 3
    for sentence in findings(content):
        assert sentence in seen.text
    assert "needs.max_delay_days" in seen.text
    assert "fairsisa simulate" in seen.text
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert found == plan_json(content)
    assert pd.DataFrame(found["candidates"]).equals(candidates.astype({"feasible": bool}))
    assert found["recommended"] == found["candidates"][:1]


def test_a_page_without_batches_or_a_feasible_candidate_is_written(tmp_path, content, candidates):
    bare = PlanningReport("None", candidates.assign(feasible=False, reason="too slow"))
    page, numbers = write_plan(tmp_path, bare)
    seen = Page(page.read_text(encoding="utf-8"))
    assert seen.tags.count("figure") == 2
    assert "Executing requests together" not in seen.text
    assert json.loads(numbers.read_text(encoding="utf-8"))["recommended"] == []


def test_words_from_outside_are_shown_and_never_run(tmp_path, content):
    evil = replace(
        content, title=EVIL, batches_of=EVIL, facts=(Fact(EVIL, EVIL, EVIL),), settings={EVIL: EVIL}, commands=(EVIL,)
    )
    page, _ = write_plan(tmp_path, evil)
    seen = Page(page.read_text(encoding="utf-8"))
    assert "script" not in seen.tags
    assert EVIL in seen.text


def test_infinite_numbers_become_null(content, batches):
    found = plan_json(replace(content, batches=batches.assign(q95=math.inf)))
    assert [row["q95"] for row in found["batches"]] == [None] * 3


def test_tables_that_lack_something_are_refused(candidates, batches):
    with pytest.raises(DataError, match="in the candidates table; delay_days not found"):
        PlanningReport("x", candidates.drop(columns="delay_days"))
    with pytest.raises(DataError, match="in the batches table; mean not found"):
        PlanningReport("x", candidates, batches.drop(columns="mean"))
    with pytest.raises(DataError, match="Expected at least one candidate, got none"):
        PlanningReport("x", candidates.head(0))


@given(st.integers(0, 10**15))
def test_sizes_are_told_to_three_digits(num_bytes):
    value, unit = size_words(num_bytes).split()
    scale = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(value) * scale == pytest.approx(num_bytes, rel=0.006)
