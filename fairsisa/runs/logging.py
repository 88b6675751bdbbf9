"""What the run's Lightning loggers are told: settings, lineage and metrics, never rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger

from fairsisa.execution import Event, Report
from fairsisa.report.content import RunReport
from fairsisa.report.rows import records
from fairsisa.runs.directory import Ensemble
from fairsisa.settings import RunSettings, plain


@contextmanager
def logged(loggers: Sequence[Logger], settings: RunSettings) -> Iterator[None]:
    """Tell every logger the settings, and close it at the end, however that comes."""
    status = "failed"
    try:
        for logger in loggers:
            logger.log_hyperparams(plain(settings))
        yield
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=0 if status == "success" else 1)


def metrics_handler(loggers: Sequence[Logger]) -> Report:
    """Return an event handler that logs each constituent's metrics under its name, by steps along its chain."""
    finished: Counter[str] = Counter()

    def handle(event: Event) -> None:
        if event.kind == "metrics":
            metrics = {f"{event.constituent}/{name}": float(value) for name, value in event.values.items()}
            for logger in loggers:
                logger.log_metrics(metrics, step=finished[event.constituent] + event.step)
        elif event.kind == "slice_done":
            finished[event.constituent] += event.step

    return handle


def log_result(loggers: Sequence[Logger], ensemble: Ensemble, report: RunReport) -> None:
    """Log the final checkpoint of every constituent as lineage, and every metric of the evaluation that is defined."""
    lineage = {name: steps[-1] for name, steps in {**ensemble.checkpoints, **ensemble.baselines}.items()}
    metrics = {}
    for row in records(report.evaluation.metrics):
        if math.isfinite(row["value"]):
            parts = ("test", row["predictor"], row["sensitive_feature"], row["metric"])
            metrics["/".join(part for part in parts if part)] = float(row["value"])
    for logger in loggers:
        logger.log_hyperparams({"lineage": lineage})
        logger.log_metrics(metrics, step=0)
