from __future__ import annotations

import json
import math
import re
from typing import Any

import pandas as pd
import pytest

from fairsisa.errors import DataError
from fairsisa.report.perplexity import (
    PERPLEXITIES,
    PerplexityReport,
    excess_by_step,
    excess_panels,
    findings,
    perplexity_by_step,
    write_perplexity,
)


def row(model: str, step: float, loss: float, difference: float = math.nan, **changes: Any) -> dict[str, Any]:
    values = {
        "model": model,
        "family": model.partition("/")[0],
        "step": step,
        "corpus": "stories",
        "perplexity": math.exp(loss),
        "perplexity_standard_error": 0.01 * math.exp(loss),
        "loss": loss,
        "loss_standard_error": 0.01,
        "difference": difference,
        "difference_low": difference - 0.02,
        "difference_high": difference + 0.02,
        "num_blocks": 50,
        "num_targets": 1000,
        "num_parameters": 12_345,
        "bytes_on_disk": 50_000,
        "sparsity": 0.5,
        "tokens_per_second": 1234.5,
    }
    return {**values, **changes}


TABLE = pd.DataFrame(
    [
        row("dense/step-000100", 100, 3.0),
        row("dense/step-001000", 1000, 2.0, -1.0),
        row("sparse/step-000100", 100, 3.1, 0.1),
        row("sparse/step-001000", 1000, 2.2, -0.8),
        row("<other>", math.nan, 2.5, sparsity=math.nan),
    ]
)
CURVE = pd.DataFrame({"step": [10, 20], "loss": [5.0, 4.0]})


def test_pages_stand_alone_and_hold_every_number(tmp_path):
    content = PerplexityReport(
        "Stories & more", TABLE, CURVE, settings={"seed": 3}, commands=("fairsisa perplexity x",)
    )
    page, table, numbers = write_perplexity(tmp_path, content, stem="report")
    assert [path.name for path in (page, table, numbers)] == ["report.html", "report.csv", "report.json"]
    html = page.read_text()
    assert "<title>Stories &amp; more</title>" in html
    assert "&lt;other&gt;" in html
    assert "<other>" not in html
    assert not re.search(r"<script|(src|href)=\"(?!#)", html)
    assert html.count("<figure") == 3
    for text in (
        "20.09",
        "± 0.20",
        "-1.0000",
        "[-1.0200, -0.9800]",
        "12,345",
        "50.0 %",
        "1,234",
        "fairsisa perplexity x",
    ):
        assert text in html
    assert pd.read_csv(table)["loss"].tolist() == TABLE["loss"].tolist()
    values = json.loads(numbers.read_text())
    assert [entry["loss"] for entry in values["rows"]] == TABLE["loss"].tolist()
    assert (values["rows"][4]["step"], values["rows"][0]["difference"]) == (None, None)
    assert values["curve"] == [{"step": 10, "loss": 5.0}, {"step": 20, "loss": 4.0}]


def test_findings_say_what_is_told_apart():
    assert findings(PerplexityReport("x", TABLE)) == [
        "stories: dense/step-001000 predicts it best of 5 models, perplexity 7.39 ± 0.07, told apart from "
        "dense/step-000100 (20.09 ± 0.20)."
    ]
    close = pd.DataFrame([row("a", math.nan, 2.0), row("b", math.nan, 1.99, -0.01)])
    assert ", not told apart from a (" in findings(PerplexityReport("x", close))[0]
    foreign = pd.DataFrame([row("a", math.nan, 2.0), row("b", math.nan, 1.5)])
    assert "not comparable" in findings(PerplexityReport("x", foreign))[0]
    first = pd.DataFrame([row("a", math.nan, 2.0)])
    assert findings(PerplexityReport("x", first)) == ["stories: a predicts it best of 1 model, perplexity 7.39 ± 0.07."]


def test_the_plot_has_a_panel_a_text_and_a_line_a_family():
    both = pd.concat([TABLE, TABLE.assign(corpus="news")], ignore_index=True)
    figure = perplexity_by_step(both)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["stories", "news"]
    for ax in figure.axes:
        lines = {str(line.get_label()): [float(value) for value in line.get_xdata()] for line in ax.get_lines()}
        assert lines == {"dense": [100, 1000], "sparse": [100, 1000], "<other>": [0, 1]}
    at_start = pd.concat([pd.DataFrame([row("dense/step-000000", 0, 6.0)]), TABLE], ignore_index=True)
    assert list(perplexity_by_step(at_start).axes[0].get_lines()[0].get_xdata()) == [100, 1000]


def test_without_checkpoints_or_text_there_is_no_plot_of_steps(tmp_path):
    plain = TABLE.assign(step=math.nan)
    assert "<figure" not in write_perplexity(tmp_path, PerplexityReport("x", plain))[0].read_text()
    empty = PerplexityReport("x", TABLE.iloc[:0])
    assert "nothing was measured" in write_perplexity(tmp_path, empty)[0].read_text()
    infinite = pd.DataFrame([row("a", 10, 3.0, perplexity=math.inf, perplexity_standard_error=math.nan)])
    values = json.loads(write_perplexity(tmp_path, PerplexityReport("x", infinite))[2].read_text())
    assert values["rows"][0]["perplexity"] is None


def test_tables_that_lack_a_column_are_refused():
    with pytest.raises(DataError, match="in the table; perplexity, loss not found"):
        PerplexityReport("x", TABLE.drop(columns=["perplexity", "loss"]))
    with pytest.raises(DataError, match="in the curve; loss not found"):
        PerplexityReport("x", TABLE, CURVE[["step"]])
    assert set(TABLE.columns) == set(PERPLEXITIES)


def test_excess_is_against_the_first_family_at_the_same_step_and_text():
    rows = [("dense", 10, "a", 100.0), ("dense", 20, "a", 50.0), ("sparse", 10, "a", 110.0), ("sparse", 20, "a", 100.0)]
    rows += [("sparse", 30, "a", 9.0), ("dense", 10, "b", 8.0), ("sparse", 10, "b", 6.0), ("sparse", 20, "b", math.inf)]
    table = pd.DataFrame(rows, columns=["family", "step", "corpus", "perplexity"])
    found = {(row.corpus, row.step): row.excess for row in excess_by_step(table).itertuples()}
    assert found == pytest.approx({("a", 10): 0.1, ("a", 20): 1.0, ("b", 10): -0.25})
    ax = excess_panels(excess_by_step(table)).axes[0]
    assert [float(y) for y in ax.lines[0].get_ydata()] == pytest.approx([10.0, 100.0])
    assert excess_by_step(table[table["family"] == "dense"]).empty
