"""What students and compressed copies of a run are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairsisa.data.encoding import Inputs, encode_examples
from fairsisa.errors import ConfigError
from fairsisa.execution import Report
from fairsisa.models.base import Base, find_base, load_tokenizer
from fairsisa.models.whole import NetworkSpec
from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.runs.directory import Descendant, Ensemble, Run
from fairsisa.runs.making import Workplace
from fairsisa.settings import ExecutionSettings, ModelSettings, TrainerSettings
from fairsisa.sisa.chain import Chain, plan_stages
from fairsisa.store import Store
from fairsisa.tables import Examples

READS = ("base", "revision", "max_length")
STARTS = ("base", "revision", "architecture", "shape")
FEATURES = "0.mean"
"""The tensor of a head, or of a tabular network, that has one number for each feature."""


@dataclass(frozen=True, eq=False)
class Origin:
    """A run as its descendants see it: its chains, what it serves of them, its examples, and where work is done."""

    place: Workplace
    assembly: Assembly
    ensemble: Ensemble
    examples: Examples

    @property
    def store(self) -> Store:
        """The store of the run."""
        return self.place.run.store

    @property
    def chains(self) -> dict[str, Chain]:
        """The constituents that have an example left, by name."""
        return {chain.constituent: chain for chain in self.assembly.constituents if any(chain.slices)}

    def base_of(self, model: ModelSettings) -> Base | None:
        """Return where a network of these settings starts; None for a tabular one.

        Raises:
            ConfigError: when it would read what the corpus does not hold.
            ModelError: when the base cannot be had.
        """
        own = self.assembly.constituents[0]
        if (model.kind == "text") != (own.base is not None):
            raise ConfigError(f"model.kind={model.kind} does not read {self.examples.name}: leave it as it is.")
        same = all(getattr(model, name) == getattr(own.model, name) for name in STARTS)
        return own.base if same or own.base is None else find_base(model)

    def read(self, model: ModelSettings, ids: Sequence[str]) -> Inputs:
        """Return examples, in that order, as a network of these settings reads them."""
        if self.reads_alike(model):
            return self.assembly.take(ids)
        chosen = self.examples.keep(self.examples.frame["example_id"].isin(set(ids)).to_numpy())
        encoded = encode_examples(chosen, self.tokenizer_of(model), model.max_length)
        places = {example: row for row, example in enumerate(encoded.example_ids)}
        return encoded.take([places[example] for example in ids])

    def reads_alike(self, model: ModelSettings) -> bool:
        """Whether a network of these settings reads the tokens that the run's constituents read."""
        own = self.place.settings.model
        return all(getattr(model, name) == getattr(own, name) for name in READS)

    def tokenizer_of(self, model: ModelSettings) -> Any:
        """Return the tokenizer of a text model."""
        base = self.base_of(model)
        if base is None:
            raise ConfigError(f"{self.examples.name} holds features, which no tokenizer reads.")
        return load_tokenizer(base)

    def with_descendant(self, name: str, made: Descendant) -> Origin:
        """Return the same run with one more descendant."""
        known = {**self.ensemble.descendants, name: made}
        return replace(self, ensemble=replace(self.ensemble, descendants=known))


def origin_of(run: Run, execution: ExecutionSettings, on_event: Report) -> Origin:
    """Return a trained run as its descendants see it."""
    examples = run.examples
    assembly = assemble(run.settings, examples, run.partition, run.store.location, baselines=())
    return Origin(Workplace(run, run.settings, execution, on_event), assembly, run.ensemble, examples)


def checkpoint_of(chain: Chain) -> str:
    """Return the name of the checkpoint that a constituent serves: the last one of a slice with examples."""
    stages = plan_stages(chain)
    return next(stage.lineage.name for stage in reversed(stages) if stage.lineage.examples)


def spec_of(chain: Chain, store: Store) -> NetworkSpec:
    """Return how a trained constituent's network is built."""
    reads_tokens = chain.base is not None and not chain.reads_features
    num_features = 0 if reads_tokens else store.get(checkpoint_of(chain)).tensors[FEATURES].numel()
    return NetworkSpec(chain.model, chain.base, num_features, chain.num_classes, chain.init_seed)


def compute_precision(trainer: TrainerSettings, model: ModelSettings) -> str:
    """Return the number format in which networks of these settings compute, "fp32" or "bf16"."""
    return trainer.precision if model.kind == "text" else "fp32"
