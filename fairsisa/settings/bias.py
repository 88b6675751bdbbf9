"""Settings of bias and behaviour: what is asked, how, and how models are compared."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import THIS_MACHINE, in_range, one_of

PRECISIONS = ("fp32", "bf16", "fast")


@dataclass(frozen=True)
class ScoringSettings:
    """How models are asked.

    A batch holds at most `max_tokens` tokens. `precision` "fast" scores in bf16 first and scores near-ties again in
    fp32. With `chat_template`, prompts are put into the tokenizer's. `num_continuations` texts are written to a
    prompt: one, the likeliest, if `temperature` is 0; else drawn from `seed`, among the likeliest tokens of mass
    `top_p`. `max_new_tokens` None leaves the length to the benchmark. `cache_bits` 2, 4 or 8 keeps the keys and values
    of prompts quantised.
    """

    max_tokens: int = 4096
    precision: str = "fp32"
    chat_template: bool = False
    num_continuations: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    cache_bits: int | None = None
    accelerator: str = "cpu"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("scoring.max_tokens", self.max_tokens, low=1)
        one_of("scoring.precision", self.precision, PRECISIONS)
        one_of("scoring.accelerator", self.accelerator, ("auto", "cpu", "cuda"))
        in_range("scoring.num_continuations", self.num_continuations, low=1)
        in_range("scoring.temperature", self.temperature, low=0.0)
        in_range("scoring.top_p", self.top_p, above=0.0, high=1.0)
        in_range("scoring.threads", self.threads, low=1)
        in_range("scoring.seed", self.seed, low=0)
        if self.max_new_tokens is not None:
            in_range("scoring.max_new_tokens", self.max_new_tokens, low=1)
        if self.cache_bits not in (None, 2, 4, 8, 16):
            raise ConfigError(f"Expected scoring.cache_bits to be 2, 4, 8, 16 or null, got {self.cache_bits}.")


@dataclass(frozen=True)
class BiasSettings:
    """Which models are asked which benchmarks.

    `models` are names as `runs.candidates.named_models` takes them. `benchmarks` are names, "name:readout" for
    another readout than the first, or "lm_eval/<task>"; without any, those that suit a model's kind and need
    neither a rater nor many hours. `limit` keeps so many items of each, drawn from `seed`, clusters whole.
    `positive_classes` are a classifier's classes of what is harmful, where their names do not say so
    ("hateful", "toxic", ...). `toxicity` and `regard` name the classifiers that rate texts, a hub id, folder or
    run; without them, ours, which `fairsisa train experiment=toxicity_rater` and `regard_rater` train into that
    name under the root of runs. `tokenizer` is for folders that hold none. Intervals come from `num_replicates`
    draws of clusters, at `level`.
    """

    models: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    limit: int | None = None
    positive_classes: tuple[str, ...] = ()
    toxicity: str | None = None
    regard: str | None = None
    tokenizer: str | None = None
    check_capability: bool = True
    num_replicates: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None:
            in_range("limit", self.limit, low=1)
        in_range("num_replicates", self.num_replicates, low=100, high=100_000)
        in_range("level", self.level, low=0.5, high=0.999)
        in_range("seed", self.seed, low=0)


@dataclass(frozen=True)
class ComparisonSettings(BiasSettings):
    """Which models are compared with which one, item by item.

    `base` is compared with each of `other` on `benchmarks`. `corpora` are texts, by name or path, on whose tokens
    language models of one vocabulary are compared in full (KL divergence), in blocks of `block_length` tokens, at most
    `num_blocks` of a text. With `floor`, the base is asked a second time with batches of half the size: what then
    changes is no model's doing.
    """

    base: str | None = None
    other: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    block_length: int = 128
    num_blocks: int = 100
    floor: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("block_length", self.block_length, low=2)
        in_range("num_blocks", self.num_blocks, low=1)


@dataclass(frozen=True)
class JudgeSettings:
    """The chat model that grades, at `<url>/chat/completions`; without a `url` nothing is ever sent.

    `url` is https, or http on this machine. `key_variable` names the environment variable that holds the key, "" for
    none. A reply is awaited for `timeout` seconds; one that fails for a passing reason is asked for up to `num_retries`
    times more, after `wait` seconds, then twice as long each time (or what the server says), 60 seconds at most.
    """

    url: str = ""
    model: str = ""
    key_variable: str = ""
    temperature: float = 0.0
    max_tokens: int = 1024
    num_retries: int = 4
    timeout: float = 120.0
    wait: float = 1.0

    def __post_init__(self) -> None:
        in_range("judge.temperature", self.temperature, low=0.0)
        in_range("judge.max_tokens", self.max_tokens, low=1)
        in_range("judge.num_retries", self.num_retries, low=0)
        in_range("judge.timeout", self.timeout, above=0.0)
        in_range("judge.wait", self.wait, low=0.0)
        if not self.url:
            return
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in THIS_MACHINE):
            raise ConfigError(f"Expected judge.url to be https, or http on this machine, got {self.url!r}.")
        if not self.model:
            raise ConfigError(f"Expected the name of the model that judges at {self.url}: set judge.model.")
