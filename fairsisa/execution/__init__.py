"""Independent tasks, run on this machine, as jobs of a cluster (submitit) or on Ray."""

from fairsisa.execution.dispatch import run_tasks as run_tasks
from fairsisa.execution.events import Event as Event
from fairsisa.execution.events import Report as Report
from fairsisa.execution.local import default_workers as default_workers
