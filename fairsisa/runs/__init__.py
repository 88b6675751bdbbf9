"""A run on disk, and one plain function per verb: the Python API."""

from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.training import train_run

__all__ = ["Run", "evaluate_run", "train_run"]
