"""The numbers of a report as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.report.content import RunReport, paired_with_baselines
from fairsisa.report.findings import cautions

FORMAT = 1


def metrics_json(content: RunReport) -> dict[str, Any]:
    """Return every number of the report as plain JSON values: tables as lists of rows, NaN and infinity as None.

    `format` grows when a key changes its meaning or goes. `paired` holds the ensemble minus each baseline.
    """
    evaluation = content.evaluation
    return {
        "format": FORMAT,
        "title": content.title,
        "ensemble": content.ensemble,
        "baselines": list(content.baselines),
        "main_features": list(content.shown_features),
        "classes": list(evaluation.classes),
        "num_examples": evaluation.num_examples,
        "num_subjects": evaluation.num_subjects,
        "num_replicates": evaluation.num_replicates,
        "level": evaluation.level,
        "metrics": _plain(evaluation.metrics),
        "paired": _plain(paired_with_baselines(content)),
        "by_group": _plain(evaluation.by_group),
        "disagreement": _plain(evaluation.disagreement),
        "small_cells": _plain(evaluation.small_cells),
        "features": _plain(evaluation.features),
        "reliability": _plain(content.reliability),
        "training": _plain(content.training),
        "curves": _plain(content.curves),
        "facts": [asdict(fact) for fact in content.facts],
        "warnings": cautions(content),
        "settings": _plain(content.settings),
        "environment": _plain(content.environment),
        "commands": list(content.commands),
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; what JSON has no word for, such as a path, as text."""
    if isinstance(value, pd.DataFrame):
        return [_plain(dict(zip(value.columns, row, strict=True))) for row in value.itertuples(index=False, name=None)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
