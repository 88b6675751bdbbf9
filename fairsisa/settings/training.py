"""What decides a run's results: model, partition, trainer, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, one_of

AGGREGATIONS = ("majority_vote", "mean_score", "weighted_score", "random_member")


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
