"""What loggers are told of an evaluation: every measure over all items."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger

from fairsisa.report.bias import BiasReport
from fairsisa.report.rows import records


def log_measures(loggers: Sequence[Logger], report: BiasReport) -> None:
    """Tell every logger the settings and the measures that are numbers, and close it."""
    metrics = dict(_metrics(report))
    for logger in loggers:
        with warnings.catch_warnings():
            # The same command again measures the same: that its older log goes is no news.
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            logger.log_hyperparams(dict(report.settings))
            if metrics:
                logger.log_metrics(metrics, step=0)
            logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _metrics(report: BiasReport) -> list[tuple[str, float]]:
    if report.measures.empty:
        return []
    whole = report.measures[report.measures["group"] == ""]
    found = [
        (f"{row['model']}/{row['benchmark']}/{row['readout']}/{row['metric']}", float(row["value"]))
        for row in records(whole)
    ]
    if len(report.comparisons):
        changes = report.comparisons[report.comparisons["group"] == ""]
        found += [
            (f"{row['other']} - {row['base']}/{row['benchmark']}/{row['readout']}/{row['metric']}", row["difference"])
            for row in records(changes)
        ]
    return [(name, float(value)) for name, value in found if math.isfinite(value)]
