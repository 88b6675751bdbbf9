"""The steps of compression: what each method reads, and those that go by a name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, nearest, one_of, refuse_unknown

PRUNING = ("magnitude", "wanda", "sparsegpt", "random", "drop_layers")
QUANTISING = ("round_to_nearest", "int8_dynamic", "torchao", "bitsandbytes")
CALIBRATED = ("wanda", "sparsegpt")
"""The methods that read calibration examples."""
TORCHAO = ("int8_weight_only", "int8_dynamic", "int4_weight_only")
PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")
ALL_WEIGHTS, EACH_LAYER = "model", "layer"
TAKES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "magnitude": ("sparsity", "pool", "include_head"),
        "wanda": ("sparsity", "pattern", "include_head"),
        "sparsegpt": ("sparsity", "pattern", "include_head"),
        "random": ("sparsity", "seed", "include_head"),
        "drop_layers": ("num_layers", "keep"),
        "round_to_nearest": ("bits", "group_size", "symmetric", "include_head"),
        "int8_dynamic": ("include_head",),
        "torchao": ("scheme", "group_size", "include_head"),
        "bitsandbytes": ("bits", "include_head"),
    }
)
"""What each method reads; to give it anything else is an error."""
KINDS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        **dict.fromkeys(("seed", "num_layers", "bits", "group_size"), (int, "a whole number")),
        **dict.fromkeys(("pattern", "pool", "keep", "scheme"), (str, "text")),
        **dict.fromkeys(("symmetric", "include_head"), (bool, "true or false")),
        "sparsity": ((int, float), "a number"),
    }
)
"""The types of each setting of a step, and their name for people."""


@dataclass(frozen=True)
class Step:
    """One step of compression; what its `method` does not read (see `TAKES`) is None.

    Pruning: `sparsity` is the share of weights removed, or `pattern` "N:M" keeps N of every M consecutive inputs.
    "magnitude" ranks weights within each `pool`: "layer", or "model" for one threshold; "random" draws from `seed`;
    "drop_layers" keeps `num_layers` of the stack, which ones by `keep` ("alternate" or "first"). Quantising: `bits`
    a weight, one scale for every `group_size` inputs (None: the whole row), `symmetric` around zero or not; `scheme`
    is one of `TORCHAO`. With `include_head` False the head (of the vocabulary, or of the classes) stays as it is.
    """

    method: str
    sparsity: float | None = None
    pattern: str | None = None
    pool: str | None = None
    seed: int | None = None
    num_layers: int | None = None
    keep: str | None = None
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    scheme: str | None = None
    include_head: bool | None = None

    def __post_init__(self) -> None:
        one_of("compression.method", self.method, TAKES)
        for name, value in _given(self).items():
            if name not in TAKES[self.method]:
                raise ConfigError(
                    f"compression method {self.method} does not read {name}={value!r}; "
                    f"it reads {', '.join(TAKES[self.method])}."
                )
            _check_kind(name, value)
        if self.sparsity is not None:
            object.__setattr__(self, "sparsity", float(self.sparsity))  # 0 and 0.0 are one step, of one fingerprint
        for name, value in _defaults(self).items():
            object.__setattr__(self, name, value)
        _check_pruning(self)
        _check_quantising(self)

    @property
    def num_kept_of(self) -> tuple[int, int] | None:
        """The pattern as numbers (N, M), or None."""
        found = None if self.pattern is None else PATTERN.fullmatch(self.pattern)
        return None if found is None else (int(found[1]), int(found[2]))

    @property
    def label(self) -> str:
        """The step in a few words, such as "wanda 2:4" or "int8_dynamic"; of what is usual, nothing."""
        usual = self.method in QUANTISING
        parts: dict[str, str] = {
            "sparsity": "" if self.sparsity is None or self.pattern else f"{100 * self.sparsity:g}%",
            "pattern": self.pattern or "",
            "pool": "over the model" if self.pool == ALL_WEIGHTS else "",
            "num_layers": f"to {self.num_layers}",
            "bits": f"{self.bits} bits",
            "scheme": self.scheme or "",
            "group_size": f"in groups of {self.group_size}" if self.group_size else "",
            "seed": f"seed {self.seed}" if self.seed else "",
            "keep": self.keep or "" if self.keep != "alternate" else "",
            "symmetric": "asymmetric" if self.symmetric is False else "",
            "include_head": "" if self.include_head == usual else "with head" if self.include_head else "without head",
        }
        chosen = [parts[name] for name in TAKES[self.method] if parts.get(name)]
        return " ".join([self.method, *chosen])


def read_steps(values: Sequence[str | Mapping[str, Any]]) -> tuple[Step, ...]:
    """Return steps from names of presets and mappings, such as `["wanda_2to4", {"method": "magnitude", ...}]`.

    A mapping may change a preset: `{"method": "wanda_2to4", "include_head": True}`.

    Raises:
        ConfigError: naming the step, for an unknown name or setting, or for a step that cannot come where it stands.
    """
    steps = tuple(_read_step(value) for value in values)
    if not steps:
        raise ConfigError(f"Expected at least one step of compression.{nearest('', PRESETS)}")
    for before, after in itertools.pairwise(steps):
        if before.method in QUANTISING[1:]:
            raise ConfigError(f"{before.label} must come last: what follows, {after.label}, cannot read its weights.")
    return steps


def plain_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return steps as plain values, those that are None left out; `read_steps` gives the same steps again."""
    return [{"method": step.method, **_given(step)} for step in steps]


def _read_step(value: str | Mapping[str, Any]) -> Step:
    asked: Any = {"method": value} if isinstance(value, str) else value
    refuse_unknown("compression", asked, {each.name for each in fields(Step)})
    values = dict(asked)
    method = str(values.pop("method", None))
    if method in PRESETS:
        changed = _given(PRESETS[method])
        if values.get("pattern") is not None:
            changed.pop("sparsity", None)
        if values.get("sparsity") is not None:
            changed.pop("pattern", None)
        return Step(PRESETS[method].method, **(changed | values))
    if method not in TAKES:
        raise ConfigError(f"Unknown step of compression {method!r}.{nearest(method, {*PRESETS, *TAKES})}")
    return Step(method, **values)


def _given(step: Step) -> dict[str, Any]:
    values = {each.name: getattr(step, each.name) for each in fields(step) if each.name != "method"}
    return {name: value for name, value in values.items() if value is not None}


def _defaults(step: Step) -> dict[str, Any]:
    """Return what a step reads and was not told."""
    usual: dict[str, Any] = {
        "sparsity": 0.5 if step.pattern is None else None,
        "pool": EACH_LAYER,
        "seed": 0,
        "keep": "alternate",
        "bits": 8,
        "symmetric": True,
        "scheme": TORCHAO[0],
        "include_head": step.method in QUANTISING,
    }
    return {name: usual[name] for name in TAKES[step.method] if name in usual and getattr(step, name) is None}


def _check_kind(name: str, value: Any) -> None:
    """Raise ConfigError unless a value that was given is of its setting's kind."""
    kinds, words = KINDS[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise ConfigError(f"Expected compression.{name} to be {words}, got {value!r}.")


def _check_pruning(step: Step) -> None:
    if step.sparsity is not None:
        in_range("compression.sparsity", step.sparsity, low=0.0)
        if step.sparsity >= 1.0:
            raise ConfigError(f"Expected compression.sparsity below 1, the share removed, got {step.sparsity}.")
    if step.pattern is not None:
        if step.sparsity is not None:
            raise ConfigError("Expected compression.sparsity or compression.pattern, got both.")
        kept = step.num_kept_of
        if kept is None or kept[0] > kept[1]:
            raise ConfigError(f"Expected compression.pattern such as 2:4, N of M kept, got {step.pattern!r}.")
    if step.pool is not None:
        one_of("compression.pool", step.pool, (EACH_LAYER, ALL_WEIGHTS))
    if step.keep is not None:
        one_of("compression.keep", step.keep, ("alternate", "first"))
    if step.method == "drop_layers" and step.num_layers is None:
        raise ConfigError("Set compression.num_layers, how many layers to keep: {method: drop_layers, num_layers: 3}.")
    if step.num_layers is not None:
        in_range("compression.num_layers", step.num_layers, low=1)


def _check_quantising(step: Step) -> None:
    if step.bits is not None:
        in_range("compression.bits", step.bits, low=2, high=32)
        if step.method == "bitsandbytes" and step.bits not in (4, 8):
            raise ConfigError(f"Expected compression.bits to be 4 or 8 with bitsandbytes, got {step.bits}.")
    if step.group_size is not None:
        in_range("compression.group_size", step.group_size, low=1)
    if step.scheme is not None:
        one_of("compression.scheme", step.scheme, TORCHAO)


PRESETS: Mapping[str, Step] = MappingProxyType(
    {
        "magnitude": Step("magnitude"),
        "magnitude_global": Step("magnitude", pool=ALL_WEIGHTS),
        "wanda": Step("wanda"),
        "wanda_2to4": Step("wanda", pattern="2:4"),
        "wanda_4to8": Step("wanda", pattern="4:8"),
        "sparsegpt": Step("sparsegpt"),
        "sparsegpt_2to4": Step("sparsegpt", pattern="2:4"),
        "random": Step("random"),
        "int8_dynamic": Step("int8_dynamic"),
        "round_to_nearest_8": Step("round_to_nearest", bits=8),
        "round_to_nearest_4": Step("round_to_nearest", bits=4, group_size=32),
        "round_to_nearest_2": Step("round_to_nearest", bits=2, group_size=32),
        "torchao_int8_weight_only": Step("torchao", scheme="int8_weight_only"),
        "torchao_int8_dynamic": Step("torchao", scheme="int8_dynamic"),
        "torchao_int4_weight_only": Step("torchao", scheme="int4_weight_only"),
        "bitsandbytes_8": Step("bitsandbytes", bits=8),
        "bitsandbytes_4": Step("bitsandbytes", bits=4),
    }
)
"""The steps that can be asked for by a name alone."""
