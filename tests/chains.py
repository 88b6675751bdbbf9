from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairsisa.data.synthetic_samples import load_synthetic_tabular, load_synthetic_text
from fairsisa.execution import Event, run_tasks
from fairsisa.lineage import content_digest
from fairsisa.models.base import MINILM_PACKAGE, Base
from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.settings import (
    EvaluationSettings,
    ExecutionSettings,
    ModelSettings,
    PartitionSettings,
    RunSettings,
    TrainerSettings,
)
from fairsisa.sisa.chain import Chain, plan_stages
from fairsisa.sisa.partition import Partition, partition_examples
from fairsisa.sisa.training import SliceResult, train_shard
from fairsisa.store import Store
from fairsisa.tables import Examples


def tokenizer_folder() -> str:
    """Return the folder of the embedded encoder's tokenizer; named directly, its weights are not hashed each time."""
    found = importlib.util.find_spec(MINILM_PACKAGE)
    return "minilm" if found is None or found.origin is None else str(Path(found.origin).parent / "model")


Row = tuple[str, str, int]
LOGISTIC = ModelSettings(kind="logistic")
PERCEPTRON = ModelSettings(kind="mlp", hidden=(5,))
TINY_TEXT = ModelSettings(
    base=tokenizer_folder(),
    architecture="bert",
    shape={
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
    },
    max_length=40,
)
QUICK = TrainerSettings(max_epochs=2.0, batch_size=4, learning_rate=1e-2, precision="fp32", accelerator="cpu")
BASE = Base(Path("nowhere"), hashlib.sha256(b"base").hexdigest())


def planned(slices: Sequence[Sequence[Row]], **changes: Any) -> Chain:
    rows = [row for own in slices for row in own]
    values: dict[str, Any] = {
        "constituent": "shard-0",
        "blocks": tuple((tuple(example for example, _, _ in own),) for own in slices),
        "contents": {example: content_digest(text, label) for example, text, label in rows},
        "model": LOGISTIC,
        "trainer": QUICK,
        "base": None,
        "num_classes": 2,
        "seed": 0,
        "store": Path("nowhere"),
    }
    return Chain(**{**values, **changes})


def names_of(chain: Chain) -> list[str]:
    return [stage.lineage.name for stage in plan_stages(chain)]


def run_of(model: ModelSettings, trainer: TrainerSettings = QUICK, **changes: Any) -> RunSettings:
    values: dict[str, Any] = {
        "seed": 0,
        "data": {"name": "synthetic_tabular" if model.kind != "text" else "synthetic_text"},
        "model": model,
        "partition": PartitionSettings(num_shards=2, num_slices=3),
        "trainer": trainer,
        "evaluation": EvaluationSettings(baselines=(), num_replicates=100),
    }
    return RunSettings(**{**values, **changes})


def sampled(settings: RunSettings, num_examples: int = 60) -> tuple[Examples, Partition]:
    load = load_synthetic_text if settings.model.kind == "text" else load_synthetic_tabular
    examples = load(num_examples=num_examples, repeat_share=0.0)
    counts = settings.partition
    return examples, partition_examples(examples, num_shards=counts.num_shards, num_slices=counts.num_slices)


def assembled(
    settings: RunSettings, store: Path, *, gone: Iterable[str] = (), num_examples: int = 60, dropped: bool = True
) -> Assembly:
    examples, partition = sampled(settings, num_examples)
    forgotten = set(gone)
    if forgotten and dropped:
        examples = examples.keep(~examples.frame["example_id"].isin(forgotten).to_numpy())
    return assemble(settings, examples, partition.without(forgotten), store)


def trained(
    assembly: Assembly,
    *,
    num_workers: int = 1,
    execution: ExecutionSettings | None = None,
    scratch: Path | None = None,
    events: list[Event] | None = None,
) -> list[SliceResult]:
    heard: list[Event] = [] if events is None else events
    tasks = assembly.shard_tasks()
    found = run_tasks(
        train_shard,
        tasks,
        execution=execution or ExecutionSettings(num_workers=num_workers),
        threads=1,
        accelerator="cpu",
        scratch=scratch or Path(f"{tasks[0].chain.store}-jobs"),
        on_event=heard.append,
    )
    return [result for results in found for result in results]


def digests_of(store: Path, kind: str | None = "checkpoint") -> dict[str, str]:
    kept = Store(store)
    return {name: kept.manifest(name).sha256 for name in kept.names(kind)}


def statuses(results: Iterable[SliceResult]) -> dict[tuple[str, int], str]:
    return {(result.constituent, result.slice): result.status for result in results}


def combinations() -> dict[str, RunSettings]:
    models: Mapping[str, ModelSettings] = {
        "logistic": LOGISTIC,
        "mlp": PERCEPTRON,
        "head": replace(TINY_TEXT, trains="head"),
        "full": TINY_TEXT,
        "lora": replace(TINY_TEXT, trains="lora", lora_rank=2, dropout=0.1),
    }
    return {
        f"{name} {state} {precision}": run_of(
            model,
            replace(QUICK, optimizer_state=state, precision=precision, max_epochs=1.0),
            partition=PartitionSettings(num_shards=1, num_slices=2),
        )
        for name, model in models.items()
        for state in ("fresh", "carried")
        for precision in ("fp32", "bf16")
    }


def digests_by_combination(root: Path, *, backwards: bool) -> dict[str, dict[str, str]]:
    """Train every combination in one process, each in a store of its own, in either order."""
    found = {}
    for name, settings in sorted(combinations().items(), reverse=backwards):
        store = root / name.replace(" ", "-")
        trained(assembled(settings, store, num_examples=30))
        found[name] = digests_of(store, None)
    return found
