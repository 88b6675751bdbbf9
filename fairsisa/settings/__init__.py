"""What a user may set: one frozen dataclass per config group, checked when it is made."""

from fairsisa.settings.bias import BiasSettings, ComparisonSettings, JudgeSettings, ScoringSettings
from fairsisa.settings.checks import in_range, nearest, one_of, refuse_unknown
from fairsisa.settings.compression import CalibrationSettings, CompressionSettings, DistillationSettings
from fairsisa.settings.deletion import (
    LEVELS,
    MOST_SIMULATED,
    PATTERNS,
    RequestSettings,
    SimulationSettings,
    StudySettings,
    UnlearningSettings,
)
from fairsisa.settings.fairness import FrontierSettings, PostprocessSettings
from fairsisa.settings.language import PerplexitySettings, PretrainingSettings, check_pretraining_trainer
from fairsisa.settings.places import ExecutionSettings, PathSettings, StorageSettings
from fairsisa.settings.reading import GROUPS, ROOTS, plain, run_settings, settings_from
from fairsisa.settings.steps import Step, plain_steps, read_steps
from fairsisa.settings.training import (
    AGGREGATIONS,
    EvaluationSettings,
    ModelSettings,
    PartitionSettings,
    RunSettings,
    TrainerSettings,
)

__all__ = [
    "AGGREGATIONS",
    "GROUPS",
    "LEVELS",
    "MOST_SIMULATED",
    "PATTERNS",
    "ROOTS",
    "BiasSettings",
    "CalibrationSettings",
    "ComparisonSettings",
    "CompressionSettings",
    "DistillationSettings",
    "EvaluationSettings",
    "ExecutionSettings",
    "FrontierSettings",
    "JudgeSettings",
    "ModelSettings",
    "PartitionSettings",
    "PathSettings",
    "PerplexitySettings",
    "PostprocessSettings",
    "PretrainingSettings",
    "RequestSettings",
    "RunSettings",
    "ScoringSettings",
    "SimulationSettings",
    "Step",
    "StorageSettings",
    "StudySettings",
    "TrainerSettings",
    "UnlearningSettings",
    "check_pretraining_trainer",
    "in_range",
    "nearest",
    "one_of",
    "plain",
    "plain_steps",
    "read_steps",
    "refuse_unknown",
    "run_settings",
    "settings_from",
]
