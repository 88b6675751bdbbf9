"""A corpus at a glance: counts by split, class and group."""

from __future__ import annotations

import pandas as pd

from fairsisa.tables import SPLITS, Examples


def describe_examples(examples: Examples) -> list[dict[str, str]]:
    """Return a row for the whole table, each class and each group, with the number of examples in each split."""
    frame = examples.frame
    rows = [_row("all", "", frame)]
    rows += [_row("class", name, frame[frame["label"] == index]) for index, name in enumerate(examples.classes)]
    for feature in examples.sensitive_names:
        groups = frame[f"sensitive:{feature}"].fillna("(unknown)")
        rows += [_row(feature, group, frame[groups == group]) for group in sorted(groups.unique())]
    return rows


def _row(what: str, value: str, frame: pd.DataFrame) -> dict[str, str]:
    return {"of": what, "value": value} | {split: f"{(frame['split'] == split).sum():,}" for split in SPLITS}
