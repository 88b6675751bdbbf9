"""What loggers are told of an evaluation: every measure over all items."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger

from fairsisa.report.bias import BiasReport


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
    columns = zip(whole["model"], whole["benchmark"], whole["metric"], whole["value"], strict=True)
    return [
        (f"{model}/{benchmark}/{metric}", float(value))
        for model, benchmark, metric, value in columns
        if math.isfinite(value)
    ]
