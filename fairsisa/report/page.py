"""The report of one run, written as a page, a text and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairsisa.report import tables
from fairsisa.report.content import Fact, RunReport
from fairsisa.report.findings import cautions, headline
from fairsisa.report.numbers import metrics_json
from fairsisa.report.pictures import pictures
from fairsisa.report.words import LIMITS, MEANINGS, METRIC_NAMES, TERMS
from fairsisa.report.writing import templates, write_whole

__all__ = ["Fact", "RunReport", "write_report"]


def write_report(directory: Path, content: RunReport) -> tuple[Path, Path, Path]:
    """Write report.html, report.md and metrics.json into a directory; return their paths.

    The page stands alone: no script, no file or address outside it, plots as SVG within. The text has the same words
    and tables without plots. The numbers are plain JSON, with null where a number does not exist. Files of these
    names are replaced, each in one step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown: dict[str, Any] = {"report": content, "findings": headline(content), "cautions": cautions(content)}
    shown |= {"tables": _tables(content), "terms": TERMS, "limits": LIMITS, "pictures": pictures(content)}
    shown["meanings"] = [(METRIC_NAMES[name], meaning) for name, meaning in MEANINGS.items()]
    environment = templates()
    numbers = json.dumps(metrics_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    return (
        write_whole(directory / "report.html", environment.get_template("report.html.j2").render(shown)),
        write_whole(directory / "report.md", environment.get_template("report.md.j2").render(shown)),
        write_whole(directory / "metrics.json", numbers + "\n"),
    )


def _tables(content: RunReport) -> dict[str, tables.Table]:
    """Return the tables by the name under which the templates place them; a table without rows is left out."""
    evaluation, chosen = content.evaluation, content.ensemble
    found = {
        "headline": tables.headline_table(content),
        "quality": tables.quality_table(evaluation),
        "predictor_differences": tables.predictor_differences_table(content),
        "feature_differences": tables.feature_differences_table(evaluation, chosen),
        "rates": tables.rates_table(evaluation, chosen),
        "disagreement": tables.disagreement_table(evaluation),
        "small_cells": tables.small_cells_table(evaluation),
        "training": tables.training_table(content.training),
        "settings": tables.settings_table("Settings", content.settings),
        "environment": tables.settings_table("Environment", content.environment),
    }
    return {name: table for name, table in found.items() if table.rows and len(table.columns) > 1}
