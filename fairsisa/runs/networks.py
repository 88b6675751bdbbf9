"""What students and compressed copies of a run are made from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fairsisa.execution import Report
from fairsisa.models.whole import NetworkSpec
from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.runs.directory import Descendant, Ensemble, Run
from fairsisa.runs.making import Workplace
from fairsisa.settings import ExecutionSettings, ModelSettings, TrainerSettings
from fairsisa.sisa.chain import Chain, plan_stages
from fairsisa.store import Store
from fairsisa.tables import Examples

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

    @property
    def base_digests(self) -> tuple[str, ...]:
        """The digest of the base model, if there is one."""
        base = self.assembly.constituents[0].base
        return () if base is None else (base.digest,)

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
