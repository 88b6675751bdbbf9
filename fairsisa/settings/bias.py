"""Settings of bias and behaviour: what is asked, how, and how models are compared."""

from __future__ import annotations

from dataclasses import dataclass

from fairsisa.settings.checks import in_range, one_of

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
        in_range("max_tokens", self.max_tokens, low=1)
        one_of("precision", self.precision, PRECISIONS)
        in_range("num_continuations", self.num_continuations, low=1)
        in_range("temperature", self.temperature, low=0.0)
        in_range("top_p", self.top_p, above=0.0, high=1.0)
        in_range("threads", self.threads, low=1)
        in_range("seed", self.seed, low=0)
        if self.max_new_tokens is not None:
            in_range("max_new_tokens", self.max_new_tokens, low=1)
