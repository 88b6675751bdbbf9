"""A run on disk, and one plain function per verb: the Python API."""

from fairsisa.runs.adding import add_examples
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.planning import plan_deletion
from fairsisa.runs.training import train_run
from fairsisa.runs.unlearning import flush, queue_request, unlearn

__all__ = ["Run", "add_examples", "evaluate_run", "flush", "plan_deletion", "queue_request", "train_run", "unlearn"]
