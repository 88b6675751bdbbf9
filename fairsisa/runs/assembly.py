"""From a run's settings and tables to the chains that train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairsisa.data.encoding import Inputs, encode_examples
from fairsisa.errors import ConfigError
from fairsisa.models.base import find_base, load_tokenizer
from fairsisa.models.device import resolve_accelerator, resolve_precision
from fairsisa.settings import RunSettings, plain, run_settings
from fairsisa.sisa.chain import Chain, features_lineage, plan_stages, predictions_lineage
from fairsisa.sisa.ensemble import PredictTask
from fairsisa.sisa.partition import Partition
from fairsisa.sisa.training import FeaturesTask, ShardTask
from fairsisa.tables import CALIBRATION, TEST, Examples

HELD_OUT = (CALIBRATION, TEST)


@dataclass(frozen=True)
class Assembly:
    """A run ready to train: every example as arrays, tokenised once, and one chain per constituent and baseline."""

    inputs: Inputs
    rows: Mapping[str, int]
    held_out: Mapping[str, tuple[str, ...]]
    constituents: tuple[Chain, ...]
    baselines: tuple[Chain, ...]
    pad_id: int
    store: str

    @property
    def chains(self) -> tuple[Chain, ...]:
        """All chains, those with most work first, so that parallel workers end together."""
        return tuple(sorted(self.baselines + self.constituents, key=lambda chain: -sum(map(len, chain.slices))))

    def take(self, ids: Sequence[str]) -> Inputs:
        """Return the given examples, in that order."""
        return self.inputs.take([self.rows[example] for example in ids])

    def shard_tasks(self) -> list[ShardTask]:
        """Return one training task per chain."""
        return [
            ShardTask(chain, self.take([i for ids in chain.slices for i in ids]), self.pad_id) for chain in self.chains
        ]

    @property
    def names(self) -> frozenset[str]:
        """The names of all that the run makes: checkpoints, features and predictions."""
        made = [stage.lineage.name for chain in self.chains for stage in plan_stages(chain)]
        made += [
            features_lineage(task.chain, task.inputs.example_ids, task.inputs.contents).name
            for task in self.features_tasks()
        ]
        for _, task in self.predict_tasks():
            last = plan_stages(task.chain)[-1].lineage.name
            made.append(predictions_lineage(task.chain, last, task.inputs.example_ids, task.inputs.contents).name)
        return frozenset(made)

    def features_tasks(self) -> list[FeaturesTask]:
        """Return one task per block of texts whose features a frozen encoder must give; none for other models."""
        first = self.constituents[0]
        if not first.reads_features:
            return []
        blocks = [block for chain in self.constituents for blocks in chain.blocks for block in blocks]
        return [FeaturesTask(first, self.take(ids)) for ids in (*self.held_out.values(), *blocks) if ids]

    def predict_tasks(self) -> list[tuple[str, PredictTask]]:
        """Return (split, task) for every chain and held-out split."""
        inputs = {split: self.take(ids) for split, ids in self.held_out.items() if ids}
        return [(split, PredictTask(chain, part)) for chain in self.chains for split, part in inputs.items()]


def resolve(settings: RunSettings) -> RunSettings:
    """Return the settings as a run keeps them: "auto" replaced by what this machine has, numbers of their own type.

    A whole number given for a float would otherwise name other checkpoints than the same settings read back.
    """
    settings = run_settings(plain(settings))
    accelerator = resolve_accelerator(settings.trainer.accelerator)
    precision = resolve_precision(settings.trainer.precision, accelerator)
    return replace(settings, trainer=replace(settings.trainer, accelerator=accelerator, precision=precision))


def assemble(
    settings: RunSettings,
    examples: Examples,
    partition: Partition,
    store: str,
    *,
    baselines: Sequence[str] | None = None,
) -> Assembly:
    """Return the run ready to train; `settings` are resolved, `store` is the location of its store.

    `baselines` None means those of the settings.

    Raises:
        ConfigError: when the model does not read what the corpus holds.
        ModelError: when the base model cannot be had.
    """
    base = tokenizer = None
    if (settings.model.kind == "text") != examples.is_text:
        holds = "texts: choose model=minilm or another text model" if examples.is_text else "features: choose model=mlp"
        raise ConfigError(f"model.kind={settings.model.kind} does not read {examples.name}, which holds {holds}.")
    if examples.is_text:
        base = find_base(settings.model)
        tokenizer = load_tokenizer(base)
    inputs = encode_examples(examples, tokenizer, settings.model.max_length)
    contents = dict(zip(inputs.example_ids, inputs.contents, strict=True))
    shards = [
        tuple((partition.slice_ids(shard, place),) for place in range(partition.num_slices))
        for shard in range(partition.num_shards)
    ]

    def chain(name: str, blocks: tuple[tuple[tuple[str, ...], ...], ...], run: RunSettings, added: int = 0) -> Chain:
        own = {example: contents[example] for cells in blocks for cell in cells for example in cell}
        return Chain(name, blocks, own, run.model, run.trainer, base, len(examples.classes), run.seed, store, added)

    unsliced = replace(
        settings, trainer=replace(settings.trainer, budget="compute_matched", slice_epochs=(), schedule="slice")
    )
    num_added = partition.num_slices - settings.partition.num_slices
    every = tuple(cell for shard in shards for (cell,) in shard)
    baseline_blocks = {"whole": (every,), "fraction": (tuple(cell for (cell,) in shards[0]),)}
    return Assembly(
        inputs=inputs,
        rows={example: row for row, example in enumerate(inputs.example_ids)},
        held_out={split: tuple(examples.split(split)["example_id"]) for split in HELD_OUT},
        constituents=tuple(chain(f"shard-{index}", blocks, settings, num_added) for index, blocks in enumerate(shards)),
        baselines=tuple(
            chain(f"baseline-{name}", baseline_blocks[name], unsliced)
            for name in (settings.evaluation.baselines if baselines is None else baselines)
        ),
        pad_id=0 if tokenizer is None else int(tokenizer.pad_token_id),
        store=store,
    )
