"""The benchmarks that can be named."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from fairsisa.bias.benchmark import Benchmark
from fairsisa.errors import ConfigError
from fairsisa.settings import nearest

MODULES = (
    "crows_pairs",
    "stereoset",
    "winobias",
    "winogender",
    "holistic_bias",
    "seat",
    "bbq",
    "discrim_eval",
    "discrim_eval_gen",
    "decodingtrust",
    "worldbench",
    "global_opinion",
    "honest",
    "regard",
    "bold",
    "real_toxicity",
    "hatecheck",
    "wiki_madlibs",
    "tasks",
    "truthful_qa",
    "lambada",
    "gsm8k",
    "mt_bench",
)
LM_EVAL = "lm_eval/"
"""What stands before the name of a task of lm-eval."""


@cache
def benchmarks() -> Mapping[str, Benchmark]:
    """Return every benchmark of fairsisa, by name."""
    found = (importlib.import_module(f"fairsisa.bias.benchmarks.{name}").BENCHMARKS for name in MODULES)
    return MappingProxyType({each.name: each for group in found for each in group})


def find_benchmark(name: str) -> tuple[Benchmark, str | None]:
    """Return the benchmark, and the readout if one is named, of "crows_pairs", "crows_pairs:unmodified" and so on.

    Raises:
        ConfigError: when there is none of that name, naming the nearest.
    """
    benchmark, _, readout = name.partition(":")
    if benchmark.startswith(LM_EVAL):
        return _of_harness(benchmark.removeprefix(LM_EVAL)), readout or None
    known = benchmarks()
    if benchmark not in known:
        raise ConfigError(
            f"Unknown benchmark {benchmark!r}.{nearest(benchmark, known)} `fairsisa bias list` lists all."
        )
    return known[benchmark], readout or None


@cache
def _of_harness(task: str) -> Benchmark:
    """Return a task of lm-eval, read once: it holds all its requests."""
    made: Benchmark = importlib.import_module("fairsisa.bias.lm_eval").benchmark_of(task)
    return made
