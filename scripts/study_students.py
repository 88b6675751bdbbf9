"""Distil a trained run into large and small, plain and fair students, compress them, and compare fair with plain.

`fairsisa train experiment=hatexplain_minilm run=runs/hatexplain` first; then
`python scripts/study_students.py --run runs/hatexplain --feature religion_any` makes what the run does not have yet,
writes the run's compression.html, and prints Markdown tables: every copy beside the ensemble, and the fair students
minus the plain ones of the same size. Changes are paired: both sides of one come from the same bootstrap draws of
subjects.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fairsisa.fairness.evaluation import Evaluation, paired_differences
from fairsisa.report.compression import CompressionReport
from fairsisa.runs.compressing import descend_run
from fairsisa.runs.descendants import Recipe
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import Measured, measure_run
from fairsisa.runs.postprocessing import postprocess_run
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    ExecutionSettings,
    PostprocessSettings,
)

RULE = "by-feature"
ACCURACY, DIFFERENCE = "accuracy", "equalized_odds_difference"


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a trained run over texts")
    parser.add_argument("--feature", default="religion_any", help="the sensitive feature that the fair teacher knows")
    parser.add_argument("--small", type=int, default=2, help="layers of the small students")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    run, here = Run(asked.run), ExecutionSettings(num_workers=asked.workers)
    rule = _rule(run, asked.feature, here)
    recipes = list(_recipes(asked.small, rule))
    for recipe in recipes:
        if recipe.name not in run.ensemble.descendants:
            print(f"making {recipe.name}", file=sys.stderr, flush=True)
            descend_run(run, recipe, execution=here, on_event=lambda event: None, evaluate=False)
    measured = measure_run(run, execution=here, on_event=lambda event: None)
    for table in _tables(measured, [recipe.name for recipe in recipes], asked.feature):
        print("\n".join(_markdown(table)) + "\n")


def _rule(run: Run, feature: str, here: ExecutionSettings) -> str:
    """Return the name of a post-processor of the feature that the run serves; fit one where there is none."""
    for name, entry in run.ensemble.postprocessors.items():
        if list(entry["settings"]["sensitive_feature"]) == [feature] and entry["artefact"] is not None:
            return name
    settings = PostprocessSettings(sensitive_feature=(feature,), name=RULE)
    return postprocess_run(run, settings, execution=here, on_event=lambda event: None, evaluate=False).name


def _recipes(small: int, rule: str) -> Iterator[Recipe]:
    plain = DistillationSettings()
    fair = DistillationSettings(teacher="fair", postprocessor=rule)
    for teacher, settings in (("plain", plain), ("fair", fair)):
        yield Recipe(distil=replace(settings, name=f"{teacher}-{small}", num_layers=small))
        yield Recipe(distil=replace(settings, name=f"{teacher}-6"))
        chosen = CompressionSettings(("int8_dynamic",), source=f"{teacher}-{small}", name=f"{teacher}-{small}-int8")
        yield Recipe(compress=(chosen, CalibrationSettings()))
    yield Recipe(compress=(CompressionSettings(("wanda",), name="ensemble-wanda"), CalibrationSettings()))


def _tables(measured: Measured, names: list[str], feature: str) -> Iterator[pd.DataFrame]:
    content, evaluation = measured.compression, measured.report.evaluation
    if content is None:
        raise SystemExit("Nothing was measured: the run has no test example, or no constituent that votes.")
    yield _side_by_side(content, [content.base, *names])
    pairs = [(name.replace("plain", "fair", 1), name) for name in names if name.startswith("plain")]
    yield _pairs(evaluation, pairs, feature)


def _side_by_side(content: CompressionReport, names: list[str]) -> pd.DataFrame:
    metrics = content.metrics.set_index(["predictor", "sensitive_feature", "metric"])
    models = content.models.set_index("name")
    rows = []
    for name in names:
        row = {"model": name, ACCURACY: _interval(metrics.loc[(name, "", ACCURACY)])}
        row |= {feature: _interval(metrics.loc[(name, feature, DIFFERENCE)]) for feature in content.features}
        model = models.loc[name]
        row |= {"MB": f"{model['size_bytes'] / 1e6:.1f}", "ms a text": f"{model['latency_ms']:.1f}"}
        rows.append(row | {"texts a second": f"{model['texts_per_second']:.0f}"})
    return pd.DataFrame(rows)


def _pairs(evaluation: Evaluation, pairs: list[tuple[str, str]], feature: str) -> pd.DataFrame:
    rows = []
    for one, other in pairs:
        found = paired_differences(evaluation, baseline=other, predictors=[one])
        found = found.set_index(["sensitive_feature", "metric"])
        change = {ACCURACY: found.loc[("", ACCURACY)], feature: found.loc[(feature, DIFFERENCE)]}
        rows.append({"change": f"{one} minus {other}"} | {key: _interval(row, "+") for key, row in change.items()})
    return pd.DataFrame(rows)


def _markdown(table: pd.DataFrame) -> Iterator[str]:
    for cells in (table.columns, ["---"] * table.shape[1], *table.to_numpy()):
        yield f"| {' | '.join(map(str, cells))} |"


def _interval(row: pd.Series, sign: str = "") -> str:
    value, low, high = (f"{float(row[name]):{sign}.3f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
