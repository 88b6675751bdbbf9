"""HateCheck: functional tests of hate speech classifiers, by what is tested and whom the text is about."""

from __future__ import annotations

import numpy as np

from fairsisa.bias.benchmark import BIAS, CAPABILITY, LABEL, PROBABILITIES, Benchmark, Columns, Files, Metric, Readout
from fairsisa.bias.benchmarks.classified import ask_harmful, auc_of, judge_harmful, sides
from fairsisa.bias.candidate import CLASSIFIER
from fairsisa.bias.items import Item, ItemTable, Label, Malformed
from fairsisa.bias.metrics import difference_between, mean_of
from fairsisa.data.sources import SourceFile, github_url

SOURCE = SourceFile(
    "hatecheck/test_suite_cases.csv.gz",
    github_url("paul-rottger/hatecheck-data", "d84302298ceeb34f4b0dde2d8a1f4932c2caa612", "test_suite_cases.csv"),
    "sha256:ecf0dc1e93fccc90b6f880e632b19e635c0f0a68b3157915a9e20b6938f121cf",
)
KEYS = {"hateful": True, "non-hateful": False}


def load(files: Files) -> ItemTable:
    """Return the cases: the text, its key, functionality and target group ("" if none); the cluster is its template.

    A case with another label than hateful and non-hateful, or without text, is malformed.
    """
    items: list[Item] = []
    malformed: list[Malformed] = []
    for row in files.rows(SOURCE):
        case = row["case_id"]
        text = row["test_case"].strip()
        if row["label_gold"] not in KEYS or not text:
            malformed.append(Malformed(case, f"label {row['label_gold']!r}" if text else "the text is empty"))
            continue
        labels: dict[str, Label] = {
            "harmful": KEYS[row["label_gold"]],
            "functionality": row["functionality"],
            "target": row["target_ident"],
        }
        items.append(Item(case, text, (), row["templ_id"], labels))
    return ItemTable(tuple(items), tuple(malformed))


def false_positive_rate_difference(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the largest minus the smallest share of a target group's harmless texts that are called hateful."""
    return _difference(columns, weights, harmful=False)


def false_negative_rate_difference(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the largest minus the smallest share of a target group's hateful texts that are not called hateful."""
    return _difference(columns, weights, harmful=True)


def _difference(columns: Columns, weights: np.ndarray, *, harmful: bool) -> np.ndarray:
    rows = sides(columns)[1] == harmful
    target = f"{LABEL}target"
    asked = {"wrong": 1.0 - np.asarray(columns["correct"], dtype=np.float64)[rows], target: columns[target][rows]}
    return difference_between("wrong", "target")(asked, weights[rows])


BENCHMARKS = (
    Benchmark(
        name="hatecheck",
        title="HateCheck",
        load=load,
        readouts=(Readout("classes", CLASSIFIER, ask_harmful, judge_harmful, answers=PROBABILITIES),),
        metrics=(
            Metric(
                "false_positive_rate_difference",
                false_positive_rate_difference,
                BIAS,
                "harmless texts about one group are called hateful more often than those about another",
                neutral=0.0,
                magnitude=True,
            ),
            Metric(
                "false_negative_rate_difference",
                false_negative_rate_difference,
                BIAS,
                "hate against one group is missed more often than hate against another",
                neutral=0.0,
                magnitude=True,
            ),
            Metric(
                "accuracy",
                mean_of("correct"),
                CAPABILITY,
                "more cases are told right",
                chance=0.5,
                flips="correct",
            ),
            Metric("auc", auc_of, CAPABILITY, "hateful texts score above harmless ones more often", chance=0.5),
        ),
        source="Roettger et al. HateCheck: Functional Tests for Hate Speech Detection Models. ACL 2021.",
        licence="CC BY 4.0",
        criticism=(
            "We know of none in what we read. Our own: texts are short and made up, and passing a test of a few "
            "templates is no proof of strength."
        ),
        breakdown=("functionality", "target"),
        files=(SOURCE,),
    ),
)
