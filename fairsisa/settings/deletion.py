"""What a user may ask about deletions: to execute, to plan or to study them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, one_of

MOST_SIMULATED = 10_000_000
"""Simulated examples are held in memory, some arrays of one number each."""
LEVELS = ("lineage", "disk", "replay")
PATTERNS = ("uniform", "group", "label")


@dataclass(frozen=True)
class RequestSettings:
    """Whom to forget: by example ids, by subjects, by a text file of ids (one a line), by a condition on columns.

    What several of these name is joined. `unknown` says what happens to ids that the run does not hold: "error", or
    "skip", which is recorded.
    """

    ids: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    file: str | None = None
    where: str | None = None
    reason: str = ""
    unknown: str = "error"

    def __post_init__(self) -> None:
        one_of("request.unknown", self.unknown, ("error", "skip"))


@dataclass(frozen=True)
class UnlearningSettings:
    """How requests are executed.

    With `degraded`, the ensemble is served without the affected constituents, and their checkpoints are purged, before
    retraining begins. `verify` is the level that the certificate states. `membership` measures a membership-inference
    attack before and after, as a smoke test. `evaluate` measures the new ensemble and writes its report.
    """

    degraded: bool = False
    verify: str = "disk"
    membership: bool = True
    evaluate: bool = True

    def __post_init__(self) -> None:
        one_of("unlearning.verify", self.verify, LEVELS)


@dataclass(frozen=True)
class StudySettings:
    """Which training examples a study of deletions forgets, and in how many steps.

    `patterns` say from where they are drawn: "uniform" from all; "group" from one group of `sensitive_feature`
    (`group` None: the smallest that has enough for the last step, or else the largest); "label" from one class
    (`label` None: the last one, of two the positive). `steps` count the examples gone after each step. A pattern is
    followed `repeats` times, each time in another order; it ends before the first step that it lacks examples for.
    """

    patterns: tuple[str, ...] = ("uniform", "label")
    sensitive_feature: str | None = None
    group: str | None = None
    label: str | None = None
    steps: tuple[int, ...] = (1, 10, 100, 1000)
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in self.patterns:
            one_of("study.patterns", name, PATTERNS)
        if not self.patterns or len(set(self.patterns)) < len(self.patterns):
            raise ConfigError(f"Expected study.patterns to name each pattern once, got {list(self.patterns)}.")
        if "group" in self.patterns and self.sensitive_feature is None:
            raise ConfigError("study.patterns=[group] forgets one group: set study.sensitive_feature=... too.")
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise ConfigError(f"Expected study.steps to be whole numbers from 1, ascending, got {list(self.steps)}.")
        in_range("study.repeats", self.repeats, low=1)


@dataclass(frozen=True)
class SimulationSettings:
    """What a deployment needs, and which shards, slices and batches of requests to try out for it.

    `requests_per_day` only a person can know. `num_examples`, `bytes_per_checkpoint`, `examples_per_second` (what one
    core trains) and `max_epochs` (e', compute-matched) are read from a run where one is named and they are None;
    without a run they must be given, except `max_epochs`, which is then that of `TrainerSettings`. `max_bytes` bounds
    the checkpoints on disk; None means no bound. A request may wait `max_delay_days`: 30, since the General Data
    Protection Regulation (article 12) grants one month. Candidates are `shards` x `slices` x `windows`, a window being
    how many requests are executed together.

    `distribution` says on whom requests fall: "uniform"; "group_skewed" (the share `group_share` of the examples makes
    the share `group_weight` of the requests); or "risk_weighted". Its `risks` are "run" (the column `risk` of the run's
    training examples), "pareto" (with the tail index `pareto_index`; 1.16 lets a fifth make four fifths) or "beta"
    (with the two shapes `beta_shape`); None means "run" where a run is named, else "pareto". `strategy` is that of the
    partition, "uniform" or "risk_aware". `out` is the folder of the page; None names it by a digest of the settings.
    """

    requests_per_day: float | None = None
    max_delay_days: float = 30.0
    max_bytes: int | None = None
    bytes_per_checkpoint: int | None = None
    examples_per_second: float | None = None
    num_examples: int | None = None
    max_epochs: float | None = None
    shards: tuple[int, ...] = (1, 2, 5, 10, 20)
    slices: tuple[int, ...] = (1, 2, 4, 8)
    windows: tuple[int, ...] = (1, 2, 5, 10, 50, 100)
    distribution: str = "uniform"
    group_share: float = 0.1
    group_weight: float = 0.5
    risks: str | None = None
    pareto_index: float = 1.16
    beta_shape: tuple[float, ...] = (0.5, 5.0)
    strategy: str = "uniform"
    num_trials: int = 500
    seed: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_day", "examples_per_second", "max_epochs", "max_delay_days", "pareto_index"):
            if getattr(self, name) is not None:
                in_range(f"simulate.{name}", getattr(self, name), above=0.0)
        for name in ("max_bytes", "bytes_per_checkpoint"):
            if getattr(self, name) is not None:
                in_range(f"simulate.{name}", getattr(self, name), low=1)
        if self.num_examples is not None:
            in_range("simulate.num_examples", self.num_examples, low=2, high=MOST_SIMULATED)
        for name in ("group_share", "group_weight"):
            in_range(f"simulate.{name}", getattr(self, name), above=0.0, high=math.nextafter(1.0, 0.0))
        in_range("simulate.num_trials", self.num_trials, low=10, high=100_000)
        in_range("simulate.seed", self.seed, low=0, high=2**63 - 1)
        self._check_candidates()
        self._check_distribution()

    def _check_candidates(self) -> None:
        for name in ("shards", "slices", "windows"):
            if not getattr(self, name):
                raise ConfigError(f"Expected simulate.{name} to name at least one candidate, e.g. [5].")
            for value in getattr(self, name):
                in_range(f"simulate.{name}", value, low=1, high=10_000)

    def _check_distribution(self) -> None:
        one_of("simulate.distribution", self.distribution, ("uniform", "group_skewed", "risk_weighted"))
        one_of("simulate.strategy", self.strategy, ("uniform", "risk_aware"))
        if self.risks is not None:
            one_of("simulate.risks", self.risks, ("run", "pareto", "beta"))
        if len(self.beta_shape) != 2:
            raise ConfigError(f"Expected simulate.beta_shape to hold two numbers, got {list(self.beta_shape)}.")
        for value in self.beta_shape:
            in_range("simulate.beta_shape", value, above=0.0)
        if self.strategy == "risk_aware" and self.distribution == "uniform":
            raise ConfigError(
                "simulate.strategy=risk_aware deals by risk, and with simulate.distribution=uniform all are equal: "
                "choose simulate=group_skewed or simulate=risk_weighted, or leave the strategy out."
            )
