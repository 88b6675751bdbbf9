"""A corpus at a glance: counts by split, class and group."""

from __future__ import annotations

from fairsisa.tables import SPLITS, Examples


def describe_examples(examples: Examples) -> list[dict[str, str]]:
    """Return a row for the whole table, each class and each group, with the number of examples in each split."""
    frame = examples.frame
    rows = [_row("all", "", frame["split"].value_counts().to_dict())]
    rows += [
        _row("class", name, frame.loc[frame["label"] == index, "split"].value_counts().to_dict())
        for index, name in enumerate(examples.classes)
    ]
    for feature in examples.sensitive_names:
        groups = frame[f"sensitive:{feature}"].fillna("(unknown)")
        for group in sorted(groups.unique()):
            rows.append(_row(feature, group, frame.loc[groups == group, "split"].value_counts().to_dict()))
    return rows


def _row(what: str, value: str, counts: dict[str, int]) -> dict[str, str]:
    return {"of": what, "value": value} | {split: f"{counts.get(split, 0):,}" for split in SPLITS}
