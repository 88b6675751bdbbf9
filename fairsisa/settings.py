"""What a user may set: one frozen dataclass per config group, checked when it is made."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from fairsisa.errors import ConfigError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class ModelSettings:
    """Which network a constituent is, and which part of it trains.

    `kind` is "text" (a Hugging Face sequence classifier), "mlp" or "logistic". For text, `base` names where the
    network comes from: "minilm" (the embedded encoder), a hub id, or a folder; with `architecture` (a Hugging Face
    model type such as "bert", "gpt2" or "llama") and `shape` (its config values), a network of random weights is
    made instead, and `base` names its tokenizer. `trains` is "full", "head" (the encoder stays as it is; its
    features are computed once and kept) or "lora" (Hu et al., ICLR 2022). With "full", the embeddings stay
    frozen if `freeze_embeddings`, and so do the `frozen_layers` lowest layers.
    """

    kind: str = "text"
    base: str = "minilm"
    revision: str | None = None
    architecture: str | None = None
    shape: Mapping[str, Any] = field(default_factory=dict)
    trains: str = "full"
    max_length: int = 128
    dropout: float | None = None
    freeze_embeddings: bool = True
    frozen_layers: int = 0
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_targets: tuple[str, ...] = ()
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        one_of("model.kind", self.kind, ("text", "mlp", "logistic"))
        one_of("model.trains", self.trains, ("full", "head", "lora"))
        in_range("model.max_length", self.max_length, low=2)
        in_range("model.frozen_layers", self.frozen_layers, low=0)
        in_range("model.lora_rank", self.lora_rank, low=1)
        in_range("model.lora_alpha", self.lora_alpha, low=1)
        if self.dropout is not None:
            in_range("model.dropout", self.dropout, low=0.0, high=0.9)
        for width in self.hidden:
            in_range("model.hidden", width, low=1)
        if self.kind == "mlp" and not self.hidden:
            raise ConfigError("Expected model.hidden to name at least one layer width for kind=mlp, e.g. [64].")
        if self.kind == "logistic" and self.hidden:
            raise ConfigError(f"A logistic regression has no hidden layer, got model.hidden={list(self.hidden)}.")


@dataclass(frozen=True)
class PartitionSettings:
    """How subjects are dealt to shards and slices (S and R of Bourtoule et al. 2021)."""

    num_shards: int = 5
    num_slices: int = 4
    strategy: str = "uniform"
    sensitive_feature: str | None = None

    def __post_init__(self) -> None:
        in_range("partition.num_shards", self.num_shards, low=1)
        in_range("partition.num_slices", self.num_slices, low=1)
        one_of("partition.strategy", self.strategy, ("uniform", "stratified", "risk_aware"))


@dataclass(frozen=True)
class TrainerSettings:
    """How a slice is trained.

    `max_epochs` is e', the epochs a shard would get without slices; `budget` says how they are spread over R
    slices: "compute_matched" (e_i = 2e'/(R+1), the total work of e' epochs), "per_slice" (e' in every slice) or a
    list of R numbers in `slice_epochs`. `schedule` shapes the learning rate: "slice" (warm-up and decay to zero in
    every slice), "chain" (one decay over the whole chain, with a warm-up in every slice) or "constant".
    `optimizer_state` is "fresh" in every slice or "carried" from its parent. `precision` "auto" takes bf16 with
    fp32 master weights where the processor multiplies bf16 natively, else fp32.
    """

    max_epochs: float = 3.0
    budget: str = "compute_matched"
    slice_epochs: tuple[float, ...] = ()
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: str = "slice"
    optimizer_state: str = "fresh"
    gradient_clip: float | None = 1.0
    precision: str = "auto"
    accelerator: str = "auto"
    threads: int = 1
    log_every_n_steps: int = 10

    def __post_init__(self) -> None:
        in_range("trainer.max_epochs", self.max_epochs, above=0.0)
        one_of("trainer.budget", self.budget, ("compute_matched", "per_slice", "listed"))
        in_range("trainer.batch_size", self.batch_size, low=1)
        in_range("trainer.learning_rate", self.learning_rate, above=0.0)
        in_range("trainer.weight_decay", self.weight_decay, low=0.0)
        in_range("trainer.warmup", self.warmup, low=0.0, high=1.0)
        one_of("trainer.schedule", self.schedule, ("slice", "chain", "constant"))
        one_of("trainer.optimizer_state", self.optimizer_state, ("fresh", "carried"))
        one_of("trainer.precision", self.precision, ("auto", "fp32", "bf16"))
        one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "cuda"))
        in_range("trainer.threads", self.threads, low=1)
        in_range("trainer.log_every_n_steps", self.log_every_n_steps, low=1)
        if self.gradient_clip is not None:
            in_range("trainer.gradient_clip", self.gradient_clip, above=0.0)
        for epochs in self.slice_epochs:
            in_range("trainer.slice_epochs", epochs, above=0.0)
        if (self.budget == "listed") != bool(self.slice_epochs):
            raise ConfigError("Set trainer.budget=listed and trainer.slice_epochs=[...] together, or neither.")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured: the aggregation the headline reads, and how its intervals are made.

    `baselines` are trained beside the ensemble: "whole" (one model on every training example) and "fraction"
    (one model on 1/S of them, without slices). `sensitive_features` empty means all that the corpus has.
    """

    aggregation: str = "majority_vote"
    baselines: tuple[str, ...] = ("whole", "fraction")
    sensitive_features: tuple[str, ...] = ()
    headline_features: tuple[str, ...] = ()
    num_replicates: int = 1000
    level: float = 0.95

    def __post_init__(self) -> None:
        one_of("evaluation.aggregation", self.aggregation, AGGREGATIONS)
        for name in self.baselines:
            one_of("evaluation.baselines", name, ("whole", "fraction"))
        in_range("evaluation.num_replicates", self.num_replicates, low=100, high=100_000)
        in_range("evaluation.level", self.level, low=0.5, high=0.999)


@dataclass(frozen=True)
class ExecutionSettings:
    """Where tasks run, a task being the chain of one constituent, and how many run at once.

    `kind` is "local" (processes on this machine), "submitit" (jobs of SLURM, or with `cluster` "local" or "debug"
    processes that stand for them; "auto" is SLURM where it is found) or "ray" (a Ray cluster at `address`:
    "auto" or host:port; None starts one on this machine). `num_workers` None means a process per core or one per
    GPU; on SLURM and on a Ray cluster, as many as there is room for. With submitit and Ray, a task whose machine
    died begins again up to `max_retries` times, and reserves `memory_gb` GiB where that is set; `timeout_minutes`,
    `partition` and `account` are what SLURM asks of a job.
    """

    kind: str = "local"
    num_workers: int | None = None
    max_retries: int = 3
    memory_gb: float | None = None
    cluster: str = "auto"
    timeout_minutes: int = 240
    partition: str | None = None
    account: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        one_of("execution.kind", self.kind, ("local", "submitit", "ray"))
        one_of("execution.cluster", self.cluster, ("auto", "slurm", "local", "debug"))
        in_range("execution.max_retries", self.max_retries, low=0)
        in_range("execution.timeout_minutes", self.timeout_minutes, low=1)
        if self.num_workers is not None:
            in_range("execution.num_workers", self.num_workers, low=1)
        if self.memory_gb is not None:
            in_range("execution.memory_gb", self.memory_gb, above=0.0)


@dataclass(frozen=True)
class PathSettings:
    """Where things are kept; `data` None means the folder that FAIRSISA_DATA names, else downloads.

    `store` is a folder, or a URL that fsspec can open. `keys` holds the secret keys of ledgers, apart from the runs;
    None means the folder that FAIRSISA_KEYS names, else ~/.config/fairsisa/keys.
    """

    root: str = "runs"
    store: str = "runs/store"
    cache: str = "~/.cache/fairsisa"
    data: str | None = None
    keys: str | None = None


@dataclass(frozen=True)
class StorageSettings:
    """Which checkpoints a run keeps on disk, beside the last of each constituent, which it needs to serve.

    `retention` is "all"; "last" (the `keep_last` last slices of each shard); or "optimal" (the subset whose expected
    retraining cost is lowest). `max_bytes` bounds the ensemble's checkpoints; None means no bound.
    """

    max_bytes: int | None = None
    retention: str = "all"
    keep_last: int = 1

    def __post_init__(self) -> None:
        one_of("store.retention", self.retention, ("all", "last", "optimal"))
        in_range("store.keep_last", self.keep_last, low=1)
        if self.max_bytes is not None:
            in_range("store.max_bytes", self.max_bytes, low=1)
        if self.retention == "optimal" and self.max_bytes is None:
            raise ConfigError("store.retention=optimal chooses under a budget: set store.max_bytes=... too.")


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


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's results, beside the code and the machine."""

    seed: int
    data: Mapping[str, Any]
    model: ModelSettings
    partition: PartitionSettings
    trainer: TrainerSettings
    evaluation: EvaluationSettings

    def __post_init__(self) -> None:
        in_range("seed", self.seed, low=0, high=2**63 - 1)
        budget, slices = self.trainer.slice_epochs, self.partition.num_slices
        if budget and len(budget) != slices:
            raise ConfigError(
                f"Expected trainer.slice_epochs to hold {slices} numbers, one a slice, got {len(budget)}."
            )


MOST_SIMULATED = 10_000_000
"""Simulated examples are held in memory, some arrays of one number each."""
LEVELS = ("lineage", "disk", "replay")
PATTERNS = ("uniform", "group", "label")
AGGREGATIONS = ("majority_vote", "mean_score", "weighted_score", "random_member")
GROUPS: Mapping[str, type] = types.MappingProxyType(
    {
        "model": ModelSettings,
        "partition": PartitionSettings,
        "trainer": TrainerSettings,
        "evaluation": EvaluationSettings,
        "execution": ExecutionSettings,
        "paths": PathSettings,
        "store": StorageSettings,
        "request": RequestSettings,
        "unlearning": UnlearningSettings,
        "simulate": SimulationSettings,
        "study": StudySettings,
    }
)


def run_settings(config: Mapping[str, Any]) -> RunSettings:
    """Return the settings in a plain nested mapping with the keys seed, data, model, partition, trainer, evaluation.

    Raises:
        ConfigError: naming the key, what came, and the nearest valid one.
    """
    known = {f.name for f in fields(RunSettings)}
    refuse_unknown("", config, known)
    groups = known & set(GROUPS)
    parts: dict[str, Any] = {name: settings_from(GROUPS[name], config.get(name, {}), name) for name in groups}
    return RunSettings(
        seed=_convert(config.get("seed", 0), int, "seed"),
        data=_convert(config.get("data"), Mapping[str, Any], "data"),
        **parts,
    )


def settings_from(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Return `kind` made of `values`, each converted to its annotated type; an absent one keeps its default."""
    hints = typing.get_type_hints(kind)
    refuse_unknown(where, values, hints)
    return kind(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def plain(settings: Any) -> dict[str, Any]:
    """Return settings as nested plain values that JSON and YAML can hold."""
    return {key: _plain(value) for key, value in dataclasses.asdict(settings).items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the closest known names, and what is known when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(names)}."


def refuse_unknown(where: str, values: object, known: Iterable[str]) -> None:
    """Raise ConfigError unless `values` is a mapping, and for its first key that is not known."""
    names = set(known)
    if not isinstance(values, Mapping):
        raise ConfigError(f"Expected {where or 'the settings'} to be a mapping, got {values!r}.")
    for key in values:
        if key not in names:
            prefix = f"{where}." if where else ""
            raise ConfigError(f"Unknown setting {prefix}{key}.{nearest(str(key), names)}")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    options = tuple(choices)
    if value not in options:
        raise ConfigError(f"Expected {name} to be one of {', '.join(options)}, got {value!r}.{nearest(value, options)}")


def in_range(
    name: str, value: float, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> None:
    """Raise ConfigError unless low <= value <= high and value > above; the message names the nearest valid value."""
    if not math.isfinite(value):
        raise ConfigError(f"Expected {name} to be a finite number, got {value}.")
    if above is not None and value <= above:
        raise ConfigError(f"Expected {name} to be greater than {above}, got {value}.")
    if low is not None and value < low:
        raise ConfigError(f"Expected {name} to be at least {low}, got {value}; the nearest valid value is {low}.")
    if high is not None and value > high:
        raise ConfigError(f"Expected {name} to be at most {high}, got {value}; the nearest valid value is {high}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _convert(value: Any, hint: Any, name: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"Expected {name} to have a value, got null.")
    target = next(option for option in options if option is not type(None))
    origin = typing.get_origin(target) or target
    if origin is tuple:
        return _convert_list(value, typing.get_args(target)[0], name)
    if origin not in (bool, int, float, str):
        if not isinstance(value, Mapping):
            raise ConfigError(f"Expected {name} to be a mapping, got {value!r}.")
        return _plain(value)
    return _convert_scalar(value, origin, name)


def _convert_list(value: Any, item: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"Expected {name} to be a list, got {value!r}; write [{value}].")
    return tuple(_convert_scalar(entry, item, name) for entry in value)


def _convert_scalar(value: Any, kind: type, name: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if (kind is int and whole) or (kind in (bool, str) and isinstance(value, kind)):
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise ConfigError(f"Expected {name} to be {words[kind]}, got {value!r}.")
