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
from markdown_it import MarkdownIt

from fairsisa.errors import DataError
from fairsisa.fairness.evaluation import evaluate, paired_differences
from fairsisa.fairness.predictors import HeldOut, Predictor
from fairsisa.intervals import Bootstrap
from fairsisa.report.compression import CompressionReport, findings, side_by_side, write_compression
from fairsisa.report.compression_plots import (
    CHANGES,
    LAYERS,
    MADE_BY,
    METRICS,
    MODELS,
    changes_table,
    layers_table,
    measured_table,
    size_panels,
    told_apart,
)
from fairsisa.report.svg import THEMED
from test_report_page import EVIL, Page
from test_report_plots import words

BASE, ODDS = "majority_vote", "equalized_odds_difference"
NAMES = ("student", "wanda", "int8", "flat")
SHOWN = (("", "accuracy"), ("sex", ODDS))
VALUES = {BASE: (0.75, 0.2), "student": (0.7, 0.1), "wanda": (0.74, 0.19), "int8": (0.745, 0.205), "flat": (0.61, 0.01)}
GOLDEN = """\
name,made_by,source,steps,num_models,num_parameters,size_bytes,memory_bytes,sparsity,bits,latency_ms,latency_low,\
latency_high,texts_per_second,accuracy,accuracy_low,accuracy_high,accuracy_change,accuracy_change_low,\
accuracy_change_high,equalized_odds_difference:sex,equalized_odds_difference:sex_low,\
equalized_odds_difference:sex_high,equalized_odds_difference:sex_change,equalized_odds_difference:sex_change_low,\
equalized_odds_difference:sex_change_high
majority_vote,train,run,,5,1000,4000000,5000000,0.0,32.0,10.0,9.0,11.0,100.0,0.75,0.625,0.875,,,,0.25,0.125,0.5,,,
student,distil,mean_score,2 layers,1,200,500000,600000,,32.0,2.5,2.0,3.0,1000.0,0.5,0.375,0.625,-0.25,-0.375,-0.125,\
0.125,0.0,0.25,-0.125,-0.25,0.0625
"""


def model(name, *, made_by="compress", steps="steps of it", size=4e6, latency=(10.0, 9.0, 11.0), sparsity=0.0):
    num_models = 1 if made_by == "distil" else 5
    return (name, made_by, "a source", steps, num_models, 1234, size, size + 1e6, sparsity, 32.0, *latency, 100.0)


def models(names=NAMES, **changes):
    rows = {
        BASE: model(BASE, made_by="train"),
        "student": model("student", made_by="distil", size=5e5, latency=(2.5, 2.0, 3.0), sparsity=math.nan),
        "wanda": model("wanda", latency=(10.4, 9.5, 11.2), sparsity=0.5),
        "int8": model("int8", size=1e6, latency=(15.0, 14.0, 16.0)),
        "flat": model("flat", latency=(math.nan,) * 3),
    }
    rows = {name: changes.get(name, rows[name]) for name in (BASE, *names)}
    return pd.DataFrame(rows.values(), columns=list(MODELS))


def metrics(names=NAMES, half=0.02, **values):
    found = VALUES | values
    rows = [
        (name, *key, value, value - half, value + half)
        for name in (BASE, *names)
        for key, value in zip(SHOWN, found[name], strict=True)
    ]
    return pd.DataFrame(rows, columns=list(METRICS))


def changes(names=NAMES, half=0.03, **values):
    found = VALUES | values
    rows = [
        (name, BASE, *key, own - theirs, own - theirs - half, own - theirs + half)
        for name in names
        for key, own, theirs in zip(SHOWN, found[name], found[BASE], strict=True)
    ]
    return pd.DataFrame(rows, columns=list(CHANGES))


def layers():
    rows = [("wanda", f"shard-{shard}", layer, 0.4 + 0.1 * shard, 32.0) for layer in ("a", "b") for shard in range(3)]
    return pd.DataFrame(rows, columns=list(LAYERS))


def report(names=NAMES, **values):
    found = {
        "title": "Smaller copies",
        "base": BASE,
        "models": models(names),
        "metrics": metrics(names),
        "changes": changes(names),
        "features": ("sex",),
    }
    return CompressionReport(**{**found, **values})


def test_findings_tell_what_is_told_apart_what_is_not_and_what_is_slower():
    assert findings(report(names=NAMES[:3], idle={"old": "stale"})) == (
        "majority_vote decides 75.0 % of the held-out examples rightly (73.0 % to 77.0 %); its equalized odds "
        "difference by sex is 0.200 (0.180 to 0.220).",
        "Accuracy is told apart from that of majority_vote for 1 of 3 copies: lower for student (-5.0 points, -8.0 to "
        "-2.0). It is not told apart for wanda, int8.",
        "The equalized odds difference by sex is told apart from that of majority_vote for 1 of 3 copies: lower for "
        "student (-0.100, -0.130 to -0.070). It is not told apart for wanda, int8.",
        "Beware: for student a difference fell together with accuracy. A collapsed model looks fair, and a model on "
        "the way there looks fairer: look at its rates in every group before calling it so.",
        "On disk majority_vote takes 4 MB (5 models). The smallest copy is student with 500 kB (1 model), 8.00 times "
        "smaller. Not smaller: wanda (4 MB).",
        "One text at a time, majority_vote takes 10.0 ms (9.0 to 11.0). Faster: student (2.5 ms, 4.00 times as fast). "
        "Slower: int8 (15.0 ms, takes 1.50 times as long). Not told apart: wanda (10.4 ms).",
        "1 copy is out of service: old.",
    )


def test_nothing_told_apart_is_said_without_a_list_and_a_rise_is_called_higher():
    quiet = findings(report(names=("wanda", "int8")))
    assert quiet[1] == "Accuracy is told apart from that of majority_vote for none of 2 copies."
    assert not [sentence for sentence in quiet if "Beware" in sentence]
    better = {"wanda": (0.8, 0.3)}
    told = findings(
        report(names=("wanda",), metrics=metrics(("wanda",), **better), changes=changes(("wanda",), **better))
    )
    assert told[1].endswith("for 1 of 1 copy: higher for wanda (+5.0 points, +2.0 to +8.0).")
    assert told[2].endswith("for 1 of 1 copy: higher for wanda (+0.100, +0.070 to +0.130).")


def collapsed(content):
    return [sentence for sentence in findings(content) if sentence.startswith("Beware")]


def test_a_collapsed_model_looks_fair_and_the_page_says_so():
    (warned,) = collapsed(report(names=("wanda", "flat"), majority_share=0.6))
    assert warned.startswith("Beware: flat does not decide more rightly, as far as can be told, than always answering")
    assert "(60.0 %). A collapsed model looks fair" in warned
    (warned,) = collapsed(report(names=("wanda", "flat"), majority_share=0.58))
    assert warned.startswith("Beware: for flat a difference fell together with accuracy. A collapsed model looks fair")
    (warned,) = collapsed(report(names=("wanda", "flat")))
    assert warned.startswith("Beware: for flat a difference")
    assert collapsed(report(names=("wanda",), majority_share=0.6)) == []
    both = collapsed(report(names=("student", "flat"), majority_share=0.6))
    assert [sentence.split(" a")[0] for sentence in both] == [
        "Beware: flat does not decide more rightly,",
        "Beware: for student",
    ]


def test_a_smaller_difference_at_equal_accuracy_is_no_reason_to_beware():
    fairer = {"wanda": (0.75, 0.1)}
    content = report(names=("wanda",), metrics=metrics(("wanda",), **fairer), changes=changes(("wanda",), **fairer))
    assert "lower for wanda (-0.100" in findings(content)[2]
    assert collapsed(content) == []


@given(st.floats(-1, 1), st.floats(0, 0.5))
def test_told_apart_is_an_interval_without_zero(value, half):
    row = {"value": value, "low": value - half, "high": value + half}
    assert (told_apart(row) == 0) == (row["low"] <= 0 <= row["high"])
    assert told_apart(row) * value >= 0
    assert told_apart({"value": math.nan, "low": math.nan, "high": math.nan}) == 0


def test_what_does_not_exist_or_was_not_measured_is_named():
    gone = metrics(("wanda",), wanda=(0.74, math.nan))
    content = report(names=("wanda",), metrics=gone, changes=changes(("wanda",), wanda=(0.74, math.nan)))
    assert findings(content)[2].endswith("for none of 1 copy. It is undefined for wanda.")
    unmeasured = models(("wanda",), majority_vote=model(BASE, made_by="train", latency=(math.nan,) * 3))
    assert findings(report(names=("wanda",), models=unmeasured))[-1] == (
        "The latency of majority_vote was not measured: no copy can be called faster or slower."
    )
    assert findings(report(names=("flat",)))[-1].endswith(" Not measured: flat.")
    assert findings(report(names=()))[-1] == "No copy of it was measured."


def test_a_larger_copy_is_called_larger():
    table = models(("wanda",), wanda=model("wanda", size=8e6))
    assert findings(report(names=("wanda",), models=table))[-2].endswith("(5 models). Not smaller: wanda (8 MB).")
    cells = measured_table(table, metrics(("wanda",)), SHOWN).rows[1]
    assert [(cell.text, cell.detail) for cell in cells[3:5]] == [
        ("8 MB", "2.00 times larger"),
        ("9 MB", "1.80 times larger"),
    ]


def test_the_tables_hold_every_number_given():
    measured = measured_table(models(), metrics(), SHOWN)
    assert [cell.text for cell in measured.rows[1]] == [
        "student",
        "0.700",
        "0.100",
        "500 kB",
        "1.5 MB",
        "2.5 ms",
        "100",
    ]
    assert [cell.detail for cell in measured.rows[1]] == [
        "steps of it",
        "[0.680, 0.720]",
        "[0.080, 0.120]",
        "8.00 times smaller",
        "3.33 times smaller",
        "[2.0, 3.0]",
        "",
    ]
    assert [cell.text for cell in measured.rows[4]][5] == ""
    changed = changes_table(models(), changes(), SHOWN)
    assert [row[0].text for row in changed.rows] == list(NAMES)
    assert [(cell.text, cell.detail) for cell in changed.rows[0][1:]] == [
        ("-0.050", "[-0.080, -0.020] lower"),
        ("-0.100", "[-0.130, -0.070] lower"),
    ]
    assert [cell.detail for cell in changed.rows[1][1:]] == [
        "[-0.040, +0.020] not told apart",
        "[-0.040, +0.020] not told apart",
    ]


def test_layers_are_told_over_constituents():
    table = layers_table(layers())
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["wanda", "a", "3", "50.0 %", "32"],
        ["wanda", "b", "3", "50.0 %", "32"],
    ]
    assert [cell.detail for cell in table.rows[0]][3:] == ["40.0 % to 60.0 %", ""]
    assert layers_table(layers().assign(sparsity=math.nan)).rows[0][3].text == ""


def test_a_mark_stands_where_its_model_does_and_is_filled_when_told_apart():
    figure = size_panels(models(), metrics(), changes(), SHOWN)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Accuracy", "Equalized odds difference by sex"]
    for place, ax in enumerate(figure.axes):
        assert ax.get_xscale() == "log"
        found = [line for line in ax.get_lines() if len(line.get_xdata()) == 1]
        at = [(line.get_xdata()[0], line.get_ydata()[0]) for line in found]
        assert at == [(row["size_bytes"], VALUES[row["name"]][place]) for _, row in models().iterrows()]
        assert [line.get_marker() for line in found] == ["s", "o", "^", "^", "^"]
        assert [line.get_markerfacecolor() != "none" for line in found] == [True, True, False, False, True]
        assert {line.get_color() for line in found} <= set(THEMED)
        bars = [line.get_ydata() for line in ax.get_lines() if line.get_alpha() == 0.4]
        assert np.allclose(bars, [[VALUES[name][place] - 0.02, VALUES[name][place] + 0.02] for name in (BASE, *NAMES)])
        assert all(ax.get_ylim()[0] < low and high < ax.get_ylim()[1] for low, high in bars)
    seen = words(figure)
    assert all(seen.count(name) == 2 for name in NAMES)
    assert {"told apart from majority_vote", "not told apart", *(name for name, _, _ in MADE_BY.values())} <= set(seen)


@pytest.mark.parametrize("number", [1, 6, 12])
def test_no_two_names_cover_each_other_nor_a_mark_of_another(number):
    names = tuple(f"copy_{place}_of_it" for place in range(number))
    rows = {name: model(name, size=4e6 / (1 + place % 3)) for place, name in enumerate(names)}
    table = pd.DataFrame([model(BASE, made_by="train"), *rows.values()], columns=list(MODELS))
    values = {name: (0.7 + 0.004 * place, 0.2) for place, name in enumerate(names)}
    figure = size_panels(table, metrics(names, **values), changes(names, **values), SHOWN[:1])
    figure.draw_without_rendering()
    (ax,) = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) == number + 1
    frame = ax.get_window_extent()
    for place, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


def test_models_without_a_number_are_named_in_the_panel():
    gone = metrics(wanda=(0.74, math.nan))
    figure = size_panels(models(), gone, changes(wanda=(0.74, math.nan)), SHOWN)
    assert "undefined: wanda" in words(figure)
    every = metrics(**dict.fromkeys((BASE, *NAMES), (0.7, math.nan)))
    assert "undefined: majority_vote, student, wanda, int8, f…"[:30] in " ".join(
        words(size_panels(models(), every, changes(), SHOWN))
    )


def test_the_table_beside_the_page_is_the_golden_one(tmp_path):
    names = ("student",)
    table = models(names).assign(
        source=["run", "mean_score"],
        steps=["", "2 layers"],
        num_parameters=[1000, 200],
        size_bytes=[4_000_000, 500_000],
        memory_bytes=[5_000_000, 600_000],
        texts_per_second=[100.0, 1000.0],
    )
    own = [
        (BASE, "", "accuracy", 0.75, 0.625, 0.875),
        (BASE, "sex", ODDS, 0.25, 0.125, 0.5),
        ("student", "", "accuracy", 0.5, 0.375, 0.625),
        ("student", "sex", ODDS, 0.125, 0.0, 0.25),
        ("constituent 0", "", "accuracy", 0.1, 0.1, 0.1),
    ]
    paired = [
        ("student", BASE, "", "accuracy", -0.25, -0.375, -0.125),
        ("student", BASE, "sex", ODDS, -0.125, -0.25, 0.0625),
    ]
    content = report(
        names=names,
        models=table,
        metrics=pd.DataFrame(own, columns=list(METRICS)),
        changes=pd.DataFrame(paired, columns=list(CHANGES)),
    )
    assert write_compression(tmp_path, content)[2].read_bytes().decode() == GOLDEN


def full(**values):
    return report(
        layers=layers(),
        warnings=("Mind this.",),
        settings={"compression": {"seed": 7}},
        commands=("fairsisa compress run=toy",),
        environment={"cpu": "a processor"},
        idle={"old": "its transfer set lost rows"},
        majority_share=0.6,
        **values,
    )


def test_the_four_files_say_the_same_and_the_page_stands_alone(tmp_path):
    content = full()
    paths = write_compression(tmp_path / "new", content, stem="smaller")
    assert [path.name for path in paths] == ["smaller.html", "smaller.md", "smaller.csv", "smaller.json"]
    assert len(list(paths[0].parent.iterdir())) == 4
    html, markdown, table, numbers = (path.read_text(encoding="utf-8") for path in paths)
    page, rendered = Page(html), Page(MarkdownIt("commonmark").enable("table").render(markdown))
    for seen in (page, rendered):
        assert seen.open == []
        places = [
            seen.text.rindex(sentence)
            for sentence in (
                "Smaller copies",
                "4 copies of majority_vote",
                *findings(content),
                "Every model, measured",
                "Every copy minus majority_vote, paired",
                "What every model is",
                "Sparsity promises no speed",
                "old: its transfer set lost rows",
                "Mind this.",
                "What these numbers cannot tell",
                "fairsisa compress run=toy",
                "compression.seed",
                "a processor",
                "in smaller.csv and smaller.json beside it.",
            )
        ]
        assert places == sorted(places)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    assert "<details>\n<summary>Every layer (2 rows)</summary>" in html
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name in ("href", "xlink:href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    assert table.count("\n") == 1 + len(content.models)
    found = json.loads(numbers, parse_constant=pytest.fail)
    assert found["findings"] == list(findings(content))
    for name in ("models", "metrics", "changes", "layers"):
        frame = getattr(content, name)
        pd.testing.assert_frame_equal(pd.DataFrame(found[name], columns=frame.columns), frame, check_dtype=False)
    assert (found["format"], found["idle"], found["environment"]) == (1, dict(content.idle), {"cpu": "a processor"})


NUMBER = re.compile(r"[-+]?\d[\d,]*\.\d+")


def traceable(content):
    """Every way in which a given number, a ratio to the base or a mean over constituents may be written."""
    given = [content.models, content.metrics, content.changes, content.layers]
    values = [abs(v) for table in given for v in table.select_dtypes("number").to_numpy().ravel() if math.isfinite(v)]
    base = content.models.iloc[0]
    for name in ("size_bytes", "memory_bytes", "latency_ms"):
        ratios = base[name] / content.models[name]
        values += [v for v in [*ratios, *(1 / ratios)] if math.isfinite(v)]
    values += [*content.layers.groupby(["name", "layer"])["sparsity"].mean(), content.majority_share, content.level]
    written = {f"{value * scale:.{digits}f}" for value in values for scale in (1, 100) for digits in (1, 2, 3)}
    return written | {f"{value / unit:.3g}" for value in values for unit in (1e3, 1e6)}


def test_every_number_of_the_page_is_traceable(tmp_path):
    content = full()
    markdown = write_compression(tmp_path, content)[1].read_text(encoding="utf-8").replace("\\", "")
    shown = {text.lstrip("+-").replace(",", "") for text in NUMBER.findall(markdown)}
    assert len(shown) > 40
    assert shown <= traceable(content)
    wrong = content.metrics.assign(value=content.metrics["value"] + 0.0377)
    other = write_compression(tmp_path, replace(content, metrics=wrong))[1].read_text(encoding="utf-8")
    assert not {text.lstrip("+-") for text in NUMBER.findall(other)} <= traceable(content)


def test_sections_without_content_are_left_out(tmp_path):
    text = Page(write_compression(tmp_path, report(names=("int8",)))[0].read_text(encoding="utf-8")).text
    assert "No warning came up." in text
    for absent in ("Out of service", "Sparsity in every layer", "To reproduce", "Environment setting"):
        assert absent not in text
    pruned = Page(write_compression(tmp_path, report(names=("wanda",)))[0].read_text(encoding="utf-8")).text
    assert "Sparsity promises no speed" in pruned
    lonely = Page(write_compression(tmp_path, report(names=()))[0].read_text(encoding="utf-8")).text
    assert "No copy of it was measured." in lonely


def test_names_stay_text_and_the_same_content_gives_the_same_bytes(tmp_path):
    table = models(("wanda",)).assign(steps=EVIL, source=EVIL)
    content = report(
        names=("wanda",), title=EVIL, models=table, idle={EVIL: EVIL}, settings={EVIL: EVIL}, commands=(EVIL,)
    )
    paths = write_compression(tmp_path, replace(content, warnings=(EVIL,)))
    before = [path.read_bytes() for path in paths]
    html, markdown = (path.read_text(encoding="utf-8") for path in paths[:2])
    for page in (Page(html), Page(MarkdownIt("commonmark").enable("table").render(markdown))):
        assert page.open == []
        assert not {"script", "b", "img"} & set(page.tags)
        assert page.text.count(EVIL) >= 10
    assert before == [path.read_bytes() for path in write_compression(tmp_path, replace(content, warnings=(EVIL,)))]


def test_tables_of_an_evaluation_fit(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    ids = tuple(str(place) for place in range(300))
    held = HeldOut(ids, np.array(ids), labels, ("no", "yes"), {"sex": rng.choice(["f", "m"], 300).astype(object)})
    worse = np.where(rng.random(300) < 0.3, 1 - labels, labels)
    predictors = [Predictor(BASE, np.where(rng.random(300) < 0.1, 1 - labels, labels)), Predictor("wanda", worse)]
    found = evaluate(held, [*predictors, Predictor("other", labels)], bootstrap=Bootstrap(num_replicates=50))
    content = report(names=("wanda",), metrics=found.metrics, changes=paired_differences(found, baseline=BASE))
    row = side_by_side(content).iloc[1]
    assert row["accuracy"] == pytest.approx((worse == labels).mean())
    assert row["accuracy_change"] == pytest.approx(row["accuracy"] - side_by_side(content)["accuracy"][0])
    assert all(path.stat().st_size > 500 for path in write_compression(tmp_path, content))


@pytest.mark.parametrize(
    ("name", "column"), [("models", "bits"), ("metrics", "low"), ("changes", "baseline"), ("layers", "constituent")]
)
def test_a_table_that_lacks_a_column_is_refused(name, column):
    table = getattr(full(), name).drop(columns=column)
    with pytest.raises(DataError, match=rf"in the {name} table; {column} not found"):
        replace(full(), **{name: table})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": models().iloc[1:]}, r"Expected 'majority_vote', .* first row of the models, got \['student'"),
        ({"models": models().head(0)}, r"first row of the models, got \[\]"),
        ({"models": pd.concat([models(), models(("wanda",)).tail(1)])}, r"one row a model, got 2 of 'wanda'"),
        ({"models": models().assign(made_by="prune")}, r"made by train, distil, compress, got 'prune'"),
        ({"models": models().assign(size_bytes=0)}, r"size on disk of 'majority_vote' above 0 bytes, got 0"),
        ({"models": models().assign(size_bytes=math.nan)}, r"above 0 bytes, got nan"),
        ({"changes": changes().assign(baseline="whole")}, r"changes against 'majority_vote', got some against 'whole'"),
        ({"metrics": metrics(NAMES[:3])}, r"Expected accuracy of 'flat' in the metrics table; not found"),
        ({"changes": changes(NAMES[1:])}, r"Expected accuracy of 'student' in the changes table; not found"),
        ({"features": ("sex", "race")}, r"equalized odds difference by race of 'majority_vote' in the metrics"),
        ({"layers": layers().assign(name="gone")}, r"layers of the models \(.*\), got some of 'gone'"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(change, said):
    with pytest.raises(DataError, match=said):
        report(**change)


@pytest.mark.parametrize("size", [1e3, 2.2e6, 3e6, 4.9e6, 7e9])
def test_the_scale_of_sizes_has_a_tick_even_when_all_are_of_one_size(size):
    table = models().assign(size_bytes=size)
    figure = size_panels(table, metrics(), changes(), SHOWN[:1])
    words(figure)
    (ax,) = figure.axes
    low, high = ax.get_xlim()
    assert [place for place in ax.get_xticks() if low <= place <= high]
    assert low < size < high
