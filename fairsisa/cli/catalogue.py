"""What the command can do: one entry per verb, so that help needs no heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Verb:
    """One thing the command can do: the function of `cli.verbs` that does it, the root config it reads, its purpose."""

    act: str
    root: str
    summary: str
    example: str


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "train": Verb(
            "train",
            "train",
            "Train a shard ensemble and its baselines, measure it and write its report.",
            "fairsisa train experiment=quickstart",
        ),
        "evaluate": Verb("evaluate", "evaluate", "Measure a trained run again.", "fairsisa evaluate run=runs/my-run"),
        "data list": Verb("data_list", "data", "List the corpora that can be named.", "fairsisa data list"),
        "data prepare": Verb(
            "data_prepare",
            "data",
            "Load and check a corpus, and write its examples table.",
            "fairsisa data prepare data=adult",
        ),
        "store ls": Verb(
            "store_ls", "store", "List the artefacts of a store or a run.", "fairsisa store ls run=runs/my-run"
        ),
    }
)
