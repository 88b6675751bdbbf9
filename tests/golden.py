"""What exact unlearning is held against: training from scratch without the forgotten ids, by code of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chains import TINY_TEXT
from fairsisa.data.encoding import encode_examples
from fairsisa.data.synthetic_samples import SENSITIVE_NAME, load_synthetic_tabular, load_synthetic_text
from fairsisa.errors import MissingArtefactError
from fairsisa.execution import Event
from fairsisa.execution.local import computing_threads
from fairsisa.lineage import content_digest
from fairsisa.models.base import find_base, load_tokenizer
from fairsisa.models.classifier import Classifier
from fairsisa.runs.adding import add_examples, load_more
from fairsisa.runs.directory import Run
from fairsisa.runs.planning import plan_deletion
from fairsisa.runs.training import train_run
from fairsisa.runs.unlearning import Outcome, flush, queue_request, unlearn
from fairsisa.settings import (
    EvaluationSettings,
    ExecutionSettings,
    ModelSettings,
    PartitionSettings,
    PathSettings,
    RequestSettings,
    RunSettings,
    TrainerSettings,
    UnlearningSettings,
)
from fairsisa.sisa.chain import Chain
from fairsisa.sisa.ensemble import PredictTask, predict_constituent
from fairsisa.sisa.training import ShardTask, train_shard
from fairsisa.store import Store
from fairsisa.tables import CALIBRATION, FEATURE, SENSITIVE, SPLITS, TEST, TRAIN, Examples

HERE = ExecutionSettings(num_workers=1)
QUIETLY = UnlearningSettings(membership=False, evaluate=False, verify="lineage")
NUM_TRAIN, NUM_HELD_OUT = 47, 6
"""47 is divisible neither by 3 or 5 shards nor by 6 or 20 slices."""
COLUMNS = {"label": "label", "example_id": "example_id", "subject_id": "subject_id", "split": "split", "risk": "risk"}
Digests = dict[tuple[str, int | str], tuple[str, str | None]]


def quiet(event: Event) -> None:
    """Hear an event and do nothing."""


@dataclass(frozen=True)
class World:
    """A run, every row it was ever given with the place it was dealt, and the ids it was asked to forget.

    `rows` are those of examples tables with `shard` and `slice`, -1 for rows that are held out. `added` counts the
    slices that came later.
    """

    run: Run
    folder: Path
    rows: pd.DataFrame
    gone: frozenset[str] = frozenset()
    added: int = 0

    @property
    def left(self) -> pd.DataFrame:
        """The rows that were not forgotten, in table order."""
        return self.rows[~self.rows["example_id"].isin(self.gone)]

    @property
    def keys(self) -> Path:
        """The folder of ledger keys."""
        return self.folder / "keys"

    def cell(self, shard: int, place: int) -> list[str]:
        """The ids left in one slice, in canonical order."""
        left = self.left
        return sorted(left.loc[(left["shard"] == shard) & (left["slice"] == place), "example_id"])

    def cells(self, shard: int | None = None) -> list[list[str]]:
        """The slices that have examples left, in canonical order; of one shard, or of all."""
        counts = self.run.settings.partition
        shards = range(counts.num_shards) if shard is None else [shard]
        found = [self.cell(s, place) for s in shards for place in range(counts.num_slices + self.added)]
        return [ids for ids in found if ids]

    def held_out(self, split: str) -> list[str]:
        """The ids left in a held-out split, in table order."""
        left = self.left
        return left.loc[left["split"] == split, "example_id"].tolist()


def small_tokenizer(folder: Path) -> str:
    """Write a tokenizer that knows the words of the made-up reviews; return its folder."""
    texts = load_synthetic_text(num_examples=400, seed=9).frame["text"]
    words = sorted({word for text in texts for word in text.lower().replace(".", " . ").replace(",", " , ").split()})
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")  # noqa: S106
    fast.save_pretrained(folder)
    return str(folder)


def made_up(kind: str, *, num_train: int = NUM_TRAIN, num_held_out: int = NUM_HELD_OUT, batch: int = 0) -> pd.DataFrame:
    """Return rows of texts or features of which several belong to one subject; of another `batch`, all are others."""
    load = load_synthetic_text if kind == "text" else load_synthetic_tabular
    split = {TRAIN: num_train, CALIBRATION: num_held_out, TEST: num_held_out}
    parts = []
    for number, (name, count) in enumerate(split.items()):
        if count:
            part = load(num_examples=count, seed=100 * batch + number, repeat_share=0.4).frame
            part = part.assign(split=name, subject_id=f"{name}-{batch}-" + part["subject_id"])
            parts.append(part.assign(example_id=[f"é/{name} {batch}-{row:03d}" for row in range(count)]))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(risk=(0.01 + 0.03 * np.modf(np.arange(len(frame)) * 0.618)[0]).astype(np.float64))


def settings_for(frame: pd.DataFrame, path: Path, model: ModelSettings, **parts: Any) -> RunSettings:
    """Write rows to a file of the user's own; return the settings of a run on it, without baselines."""
    features = [column.removeprefix(FEATURE) for column in frame.columns if column.startswith(FEATURE)]
    inputs: dict[str, Any] = {"numeric": features} if features else {"text": "text"}
    columns = {**COLUMNS, **inputs, "sensitive": [SENSITIVE_NAME], "classes": ["0", "1"]}
    write_own(frame, path)
    quick = TrainerSettings(max_epochs=1.5, batch_size=8, learning_rate=1e-2, precision="fp32", accelerator="cpu")
    values: dict[str, Any] = {
        "seed": 0,
        "data": {"name": "own", "path": str(path), "columns": columns},
        "model": model,
        "partition": PartitionSettings(num_shards=3, num_slices=2),
        "trainer": quick,
        "evaluation": EvaluationSettings(baselines=(), num_replicates=100),
    }
    return RunSettings(**{**values, **parts})


def write_own(frame: pd.DataFrame, path: Path) -> None:
    """Write rows as a file of the user's own."""
    plain = {name: name.removeprefix(FEATURE).removeprefix(SENSITIVE) for name in frame.columns}
    frame.rename(columns=plain).to_parquet(path, index=False)


def tiny(trains: str, tokenizer: str) -> ModelSettings:
    """Return the settings of a tiny network over texts with dropout."""
    dropout = None if trains == "head" else 0.1
    shape = {**TINY_TEXT.shape, "num_hidden_layers": 1}
    return replace(TINY_TEXT, base=tokenizer, trains=trains, shape=shape, max_length=12, lora_rank=2, dropout=dropout)


def begin(settings: RunSettings, folder: Path, *, run: str = "run") -> World:
    """Train a run in `folder`, its store beside it."""
    handle = Run(folder / run)
    paths = PathSettings(store=str(folder / "store"), cache=str(folder / "cache"))
    train_run(settings, handle, paths=paths, execution=HERE, on_event=quiet)
    return World(handle, folder, _placed(handle.examples.frame, handle))


def forget(world: World, **request: Any) -> World:
    """Unlearn by the plain verb what a request names; check its plan against what was trained."""
    return _forget(world, [RequestSettings(**request)], together=False)


def forget_together(world: World, *requests: Mapping[str, Any]) -> World:
    """Queue requests, and execute them at once."""
    return _forget(world, [RequestSettings(**request) for request in requests], together=True)


def grow(world: World, frame: pd.DataFrame) -> World:
    """Add rows to the run; they keep from now on the place they were dealt."""
    path = world.folder / f"more-{world.added}.parquet"
    write_own(frame, path)
    new = load_more(world.run, {"path": str(path)}, root=None, cache=world.folder)
    add_examples(world.run, new, keys=world.keys, execution=HERE, on_event=quiet, evaluate=False)
    rows = pd.concat([world.rows, _placed(new.frame, world.run)], ignore_index=True)
    return replace(world, rows=rows, added=world.added + 1)


def published(world: World) -> Digests:
    """Return name and payload digest of all that the run serves; None where the store does not hold it."""
    ensemble, store = world.run.ensemble, world.run.store
    names: dict[tuple[str, int | str], str] = {
        (constituent, place): name for constituent, steps in ensemble.chains.items() for place, name in enumerate(steps)
    }
    for split, made in ensemble.predictions.items():
        names |= {(constituent, split): name for constituent, name in made.items()}
    return {where: (name, _digest(store, name)) for where, name in names.items()}


def oracle(world: World, store: Path) -> Digests:
    """Train on the rows left alone, in a store that never saw an unlearning; return what came out as `published`."""
    settings, left = world.run.settings, world.left.reset_index(drop=True)
    is_text = "text" in left.columns
    base = find_base(settings.model) if is_text else None
    tokenizer = None if base is None else load_tokenizer(base)
    examples = Examples("oracle", left.drop(columns=["shard", "slice"]), world.run.examples.classes)
    inputs = encode_examples(examples, tokenizer, settings.model.max_length)
    rows = {example: row for row, example in enumerate(left["example_id"])}
    values = left["text"].tolist() if is_text else list(examples.features())
    contents = {
        example: content_digest(value, int(label))
        for example, value, label in zip(left["example_id"], values, left["label"], strict=True)
    }
    kept, found = Store(store), Digests()
    for shard in range(settings.partition.num_shards):
        blocks = tuple(
            (tuple(world.cell(shard, place)),) for place in range(settings.partition.num_slices + world.added)
        )
        chain = Chain(
            constituent=f"shard-{shard}",
            blocks=blocks,
            contents=contents,
            model=settings.model,
            trainer=settings.trainer,
            base=base,
            num_classes=2,
            seed=settings.seed,
            store=kept.location,
            num_added=world.added,
        )
        own = [rows[example] for ids in chain.slices for example in ids]
        pad = 0 if tokenizer is None else int(tokenizer.pad_token_id)
        with computing_threads(settings.trainer.threads):
            names: dict[int | str, str | None] = {
                result.slice: result.checkpoint
                for result in train_shard(ShardTask(chain, inputs.take(own), pad), quiet)
            }
            for split in SPLITS[1:]:
                part = [rows[example] for example in world.held_out(split)]
                names[split] = predict_constituent(PredictTask(chain, inputs.take(part)), quiet) if part else None
        found |= {(chain.constituent, where): (name, _digest(kept, name)) for where, name in names.items() if name}
    return found


def differences(found: Digests, expected: Digests) -> list[tuple[str, int | str]]:
    """Return where two ensembles differ in a name or in a bit, or one has something the other lacks."""
    return sorted({w for w in {*found, *expected} if found.get(w) != expected.get(w)}, key=str)


@contextmanager
def hurried() -> Iterator[None]:
    """Leave out what takes time and changes no bit: waiting for the disk, looking for plug-ins, reading files again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        patch.setattr("fairsisa.runs.directory.yaml.safe_load", lambda text: json.loads(_as_json(text)))
        patch.setattr("fairsisa.runs.directory.Store", cache(Store))
        patch.setattr("fairsisa.runs.attesting.write_certificate_page", lambda path, certificate: path)
        patch.setattr(
            "pytorch_lightning.trainer.connectors.callback_connector._load_external_callbacks", lambda group: []
        )
        yield


@contextmanager
def counted() -> Iterator[list[int]]:
    """Note how many examples each optimizer step is shown."""
    shown: list[int] = []
    step = Classifier._step

    def counting(self: Classifier, batch: dict[str, Any]) -> Any:
        shown.append(len(batch["labels"]))
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "_step", counting)
        yield shown


def named_in(world: World, requests: Iterable[RequestSettings]) -> frozenset[str]:
    """Return the ids left that requests name."""
    left, found = world.left, set[str]()
    for request in requests:
        found |= set(request.ids)
        found |= set(left.loc[left["subject_id"].isin(request.subjects), "example_id"])
    return frozenset(found)


def _forget(world: World, requests: Sequence[RequestSettings], *, together: bool) -> World:
    going = named_in(world, requests)
    plan = plan_deletion(world.run, going)
    with counted() as shown:
        outcome = _carried_out(world, requests, together=together)
    assert plan.presentations == sum(shown)
    assert len(outcome.certificates) == len(requests)
    for path in outcome.certificates:
        said = pd.read_json(path, typ="series")
        assert (said["presentations_planned"], said["presentations_done"]) == (plan.presentations, sum(shown))
    assert world.run.store.find(going) == ()
    return replace(world, gone=world.gone | going)


def _carried_out(world: World, requests: Sequence[RequestSettings], *, together: bool) -> Outcome:
    options: dict[str, Any] = {"settings": QUIETLY, "execution": HERE, "on_event": quiet}
    if not together:
        return unlearn(world.run, requests[0], keys=world.keys, **options)
    for request in requests:
        queue_request(world.run, request, keys=world.keys)
    return flush(world.run, keys=world.keys, **options)


@cache
def _as_json(text: str) -> str:
    return json.dumps(yaml.load(text, Loader=yaml.SafeLoader))


def _placed(frame: pd.DataFrame, run: Run) -> pd.DataFrame:
    dealt = run.partition.frame()[["example_id", "shard", "slice"]]
    placed = frame.merge(dealt, on="example_id", how="left", validate="one_to_one")
    return placed.assign(**{name: placed[name].fillna(-1).astype(np.int64) for name in ("shard", "slice")})


def _digest(store: Store, name: str) -> str | None:
    try:
        return store.manifest(name).sha256 if store.has(name) else None
    except MissingArtefactError:
        return None
