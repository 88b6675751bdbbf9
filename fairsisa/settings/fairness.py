"""What a user may ask of fair post-processing: which rule, under which criterion, for which groups."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, one_of

FORMS = ("max", "mean")
SOLVERS = ("auto", "plane", "highs", "clarabel")
SMALL_CELLS = ("error", "warn", "ignore")
RANDOMIZATIONS = ("keyed", "none")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,119}")
"""What may stand in the name of a file, on any system."""


@dataclass(frozen=True)
class PostprocessSettings:
    """How a run's decisions are made fair.

    `strategy` names a member of `fairness.strategies`. `criterion` names one fairness criterion or more, and
    `tolerance` how far each may be missed, one number for all or one for each, in their order; `form` says whether
    that bounds the largest difference over rates or their mean. `sensitive_feature` names the sensitive features of
    the run: of several, groups are the combinations of their values. The costs are those of one wrong decision.
    A cell (group and label) with fewer than `min_cell_count` examples is an error, a warning or neither, as
    `small_cells` says. `randomization` "keyed" draws by a keyed hash of the example id, "none" gives a rule without
    chance. Examples of an unknown group, or of one that calibration never met, are decided as `unknown_group` says:
    "unprocessed", "error", or as the group of that name. `name` is that under which the run keeps the post-processor;
    None makes one of features, criteria and strategy.
    """

    strategy: str = "auto"
    criterion: tuple[str, ...] = ("equalized_odds",)
    tolerance: tuple[float, ...] = (0.05,)
    form: str = "max"
    sensitive_feature: tuple[str, ...] = ()
    false_positive_cost: float = 1.0
    false_negative_cost: float = 1.0
    solver: str = "auto"
    min_cell_count: int = 30
    small_cells: str = "warn"
    randomization: str = "keyed"
    unknown_group: str = "unprocessed"
    name: str | None = None

    def __post_init__(self) -> None:
        _check_rule(self)
        one_of("randomization", self.randomization, RANDOMIZATIONS)
        for value in self.tolerance:
            in_range("tolerance", value, low=0.0)
        if len(self.tolerance) not in (1, len(self.criterion)):
            raise ConfigError(
                f"Expected one tolerance for all criteria, or one for each of {len(self.criterion)}; "
                f"got {len(self.tolerance)}."
            )
        if self.name is not None and not NAME.fullmatch(self.name):
            raise ConfigError(
                f"Expected name to be letters, digits and _ . + - (at most 120, the first a letter or digit), "
                f"got {self.name!r}."
            )

    @property
    def tolerances(self) -> tuple[float, ...]:
        """One tolerance for each criterion."""
        return self.tolerance * len(self.criterion) if len(self.tolerance) == 1 else self.tolerance

    @property
    def chosen_name(self) -> str:
        """The name under which the run keeps the post-processor, such as "religion_any.equalized_odds.auto"."""
        if self.name is not None:
            return self.name
        parts = ("+".join(self.sensitive_feature), "+".join(self.criterion), self.strategy)
        return re.sub(r"[^A-Za-z0-9_.+-]", "-", ".".join(parts)).lstrip("_.+-")[:120]


@dataclass(frozen=True)
class FrontierSettings:
    """Which tolerances are swept, and for which criterion and groups; see `PostprocessSettings` for what is shared.

    `tolerances` are those of the first criterion, ascending; the others keep theirs, given in `tolerance`.
    `strategies` empty means all that apply to the run's number of classes.
    """

    criterion: tuple[str, ...] = ("equalized_odds",)
    tolerances: tuple[float, ...] = tuple(round(0.015 * step, 3) for step in range(21))
    tolerance: tuple[float, ...] = (0.05,)
    form: str = "max"
    sensitive_feature: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    false_positive_cost: float = 1.0
    false_negative_cost: float = 1.0
    solver: str = "auto"
    min_cell_count: int = 30
    small_cells: str = "warn"

    def __post_init__(self) -> None:
        _check_rule(self)
        if not self.tolerances or list(self.tolerances) != sorted(set(self.tolerances)):
            raise ConfigError(f"Expected tolerances to ascend, each once, got {list(self.tolerances)}.")
        for value in (*self.tolerances, *self.tolerance):
            in_range("tolerances", value, low=0.0)
        if len(self.tolerance) not in (1, len(self.criterion)):
            raise ConfigError(
                f"Expected one tolerance for all criteria, or one for each of {len(self.criterion)}; "
                f"got {len(self.tolerance)}."
            )


def _check_rule(settings: PostprocessSettings | FrontierSettings) -> None:
    """Check what both kinds of settings have."""
    one_of("form", settings.form, FORMS)
    one_of("solver", settings.solver, SOLVERS)
    one_of("small_cells", settings.small_cells, SMALL_CELLS)
    in_range("min_cell_count", settings.min_cell_count, low=0)
    for name in ("false_positive_cost", "false_negative_cost"):
        in_range(name, getattr(settings, name), low=0.0)
    for name in ("criterion", "sensitive_feature"):
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"Expected {name} to name each once, got {list(values)}.")
    if not settings.criterion:
        raise ConfigError("Expected criterion to name at least one, e.g. equalized_odds.")
