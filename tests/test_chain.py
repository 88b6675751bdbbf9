from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains import BASE, LOGISTIC, QUICK, TINY_TEXT, Row, names_of, planned
from fairsisa.lineage import content_digest
from fairsisa.models.base import Base
from fairsisa.settings import ModelSettings, TrainerSettings
from fairsisa.sisa.chain import block_lineage, plan_stages, predictions_lineage

Shard = list[list[Row]]
ROWS: Shard = [[("a", "one", 0), ("b", "two", 1), ("c", "three", 1)], [("d", "four", 0), ("e", "five", 1)]]
OTHER_MODEL: dict[str, Any] = {
    "kind": "text",
    "revision": "main",
    "architecture": "distilbert",
    "shape": {"hidden_size": 32},
    "trains": "lora",
    "max_length": 64,
    "dropout": 0.0,
    "freeze_embeddings": False,
    "frozen_layers": 1,
    "lora_rank": 4,
    "lora_alpha": 8,
    "lora_targets": ("query",),
    "hidden": (7,),
}
OTHER_TRAINER: dict[str, Any] = {
    "max_epochs": 3.0,
    "budget": "per_slice",
    "slice_epochs": (1.0, 5.0),
    "batch_size": 8,
    "learning_rate": 2e-2,
    "weight_decay": 0.0,
    "warmup": 0.2,
    "schedule": "chain",
    "optimizer_state": "carried",
    "gradient_clip": None,
    "precision": "bf16",
    "accelerator": "cuda",
    "threads": 2,
}


@dataclass(frozen=True)
class Deletion:
    """Shards of slices of rows before and after a change in one place."""

    before: list[Shard]
    after: list[Shard]
    shard: int
    slice: int


def row_of(place: tuple[int, ...]) -> Row:
    return ("-".join(map(str, place)), f"text {place}", sum(place) % 2)


def reworded(own: list[Row], at: int) -> list[Row]:
    example, text, label = own[at]
    return [*own[:at], (example, text + "!", label), *own[at + 1 :]]


def relabelled(own: list[Row], at: int) -> list[Row]:
    example, text, label = own[at]
    return [*own[:at], (example, text, 1 - label), *own[at + 1 :]]


def renamed(own: list[Row], at: int) -> list[Row]:
    example, text, label = own[at]
    return [*own[:at], (example + "-other", text, label), *own[at + 1 :]]


def removed(own: list[Row], at: int) -> list[Row]:
    return own[:at] + own[at + 1 :]


def added(own: list[Row], at: int) -> list[Row]:
    return [*own[:at], ("new", "a new text", 0), *own[at:]]


def reordered(own: list[Row], at: int) -> list[Row]:
    return [own[at], *removed(own, at)] if at else [*own[1:], own[0]]


CHANGES: tuple[Callable[[list[Row], int], list[Row]], ...] = (
    reworded,
    relabelled,
    renamed,
    removed,
    added,
    reordered,
)


@st.composite
def deletions(draw: st.DrawFn, change: Callable[[list[Row], int], list[Row]]) -> Deletion:
    num_shards, num_slices = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shard, place = draw(st.integers(0, num_shards - 1)), draw(st.integers(0, num_slices - 1))
    sizes = draw(
        st.lists(
            st.lists(st.integers(0, 3), min_size=num_slices, max_size=num_slices),
            min_size=num_shards,
            max_size=num_shards,
        )
    )
    sizes[shard][place] += 2
    before = [
        [[row_of((s, r, i)) for i in range(count)] for r, count in enumerate(counts)] for s, counts in enumerate(sizes)
    ]
    at = draw(st.integers(0, sizes[shard][place] - 1))
    after = [[list(own) for own in slices] for slices in before]
    after[shard][place] = change(before[shard][place], at)
    return Deletion(before, after, shard, place)


def grid(shards: list[Shard], **changes: Any) -> dict[tuple[int, int], str]:
    chains = [planned(slices, constituent=f"shard-{k}", **changes) for k, slices in enumerate(shards)]
    return {(k, r): name for k, chain in enumerate(chains) for r, name in enumerate(names_of(chain))}


@pytest.mark.parametrize("base", [None, BASE], ids=["tabular", "head"])
@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=30)
@given(data=st.data())
def test_a_change_renames_its_slice_and_the_later_ones_of_its_shard(change, base, data):
    case = data.draw(deletions(change))
    changes = {} if base is None else {"base": base, "model": replace(TINY_TEXT, trains="head")}
    before, after = grid(case.before, **changes), grid(case.after, **changes)
    moved = {place for place, name in before.items() if after[place] != name}
    assert moved == {(case.shard, r) for r in range(case.slice, len(case.before[0]))}
    assert len(set(before.values()) | set(after.values())) == len(before) + len(moved)


def changed(settings: Any, name: str, value: Any) -> Any:
    extra: dict[str, Any] = {}
    if name == "kind":
        extra["hidden"] = ()
    if name == "hidden":
        extra["kind"] = "mlp"
    if name == "slice_epochs":
        extra["budget"] = "listed"
    return replace(settings, **{name: value}, **extra)


def test_every_field_of_the_settings_is_accounted_for():
    assert {field.name for field in fields(ModelSettings)} == {*OTHER_MODEL, "base"}
    assert {field.name for field in fields(TrainerSettings)} == {*OTHER_TRAINER, "log_every_n_steps"}


@pytest.mark.parametrize("field", OTHER_MODEL)
def test_every_setting_of_the_model_renames_all(field):
    before, after = (names_of(planned(ROWS, model=m)) for m in (LOGISTIC, changed(LOGISTIC, field, OTHER_MODEL[field])))
    assert not set(before) & set(after)


@pytest.mark.parametrize("field", OTHER_TRAINER)
def test_every_setting_of_training_renames_all(field):
    after = names_of(planned(ROWS, trainer=changed(QUICK, field, OTHER_TRAINER[field])))
    assert not set(names_of(planned(ROWS))) & set(after)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"num_classes": 3},
        {"constituent": "shard-1"},
        {"base": Base(Path("nowhere"), hashlib.sha256(b"another base").hexdigest())},
    ],
    ids=["seed", "num_classes", "constituent", "base"],
)
def test_seed_classes_constituent_and_base_rename_all(changes):
    assert not set(names_of(planned(ROWS, base=BASE))) & set(names_of(planned(ROWS, **{"base": BASE, **changes})))


def test_what_training_does_not_read_renames_nothing():
    before = names_of(planned(ROWS, base=BASE))
    quiet = replace(QUICK, log_every_n_steps=77)
    assert names_of(planned(ROWS, base=BASE, trainer=quiet)) == before
    moved = replace(BASE, folder=Path("elsewhere"))
    assert names_of(planned(ROWS, base=moved, store=Path("elsewhere"))) == before
    assert names_of(planned(ROWS, base=BASE, model=replace(LOGISTIC, base="a/mirror"))) == before


def test_two_ways_to_ask_for_the_same_work_share_a_name():
    whole = [[row for own in ROWS for row in own]]
    matched, per_slice = planned(whole), planned(whole, trainer=replace(QUICK, budget="per_slice"))
    listed = planned(whole, trainer=replace(QUICK, budget="listed", slice_epochs=(QUICK.max_epochs,)))
    assert names_of(matched) == names_of(per_slice) == names_of(listed)
    chained = planned(whole, trainer=replace(QUICK, schedule="chain"))
    assert names_of(chained) == names_of(matched)  # one slice decays from 1 to 0 either way


def test_a_checkpoint_names_its_own_ids_and_its_parent():
    chain = planned([*ROWS, [], [("f", "six", 0)]])
    stages = plan_stages(chain)
    assert [stage.lineage.examples for stage in stages] == [("a", "b", "c"), ("d", "e"), (), ("f",)]
    assert [stage.lineage.parents for stage in stages] == [(), *((stage.lineage.name,) for stage in stages[:-1])]
    assert [stage.num_presentations > 0 for stage in stages] == [True, True, False, True]
    assert len({stage.seed for stage in stages}) == len(stages)


def test_every_slice_of_every_shard_of_every_run_has_a_seed_of_its_own():
    chains = [planned(ROWS, seed=seed, constituent=f"shard-{k}") for seed in range(3) for k in range(3)]
    seeds = [stage.seed for chain in chains for stage in plan_stages(chain)] + [chain.init_seed for chain in chains]
    assert len(set(seeds)) == len(seeds) == 3 * 3 * 3
    shorter = [planned([own[1:] for own in ROWS], seed=seed) for seed in range(3)]
    kept = [planned(ROWS, seed=seed) for seed in range(3)]
    for after, before in zip(shorter, kept, strict=True):  # whatever was deleted, the seeds stay
        assert [stage.seed for stage in plan_stages(after)] == [stage.seed for stage in plan_stages(before)]
        assert after.init_seed == before.init_seed


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.floats(0.1, 7.0))
def test_planned_presentations_follow_the_paper(sizes, max_epochs):
    shards = [[row_of((r, i)) for i in range(count)] for r, count in enumerate(sizes)]
    stages = plan_stages(planned(shards, trainer=replace(QUICK, max_epochs=max_epochs)))
    each = 2 * max_epochs / (len(sizes) + 1)
    wanted = [each * seen if own else 0.0 for own, seen in zip(sizes, accumulate(sizes), strict=True)]
    shown = [stage.num_presentations for stage in stages]
    for done, total in zip(accumulate(shown), accumulate(wanted), strict=True):
        assert abs(done - total) <= 0.5
    assert all(count == 0 for count, own in zip(shown, sizes, strict=True) if not own)


def test_a_head_is_made_from_features_that_constituents_share():
    model = replace(TINY_TEXT, trains="head")
    shard = planned(ROWS, model=model, base=BASE)
    blocks = tuple((tuple(example for example, _, _ in own),) for own in ROWS)
    every = (tuple(block for (block,) in blocks),)
    whole = planned(ROWS, model=model, base=BASE, constituent="baseline-whole", blocks=every, seed=5)
    features = [block_lineage(shard, block).name for (block,) in blocks]
    stages = plan_stages(shard)
    assert [set(features) & set(stage.lineage.parents) for stage in stages] == [{name} for name in features]
    assert plan_stages(whole)[0].lineage.parents == tuple(features)
    assert whole.slices == (tuple("abcde"),)
    trained_otherwise = replace(shard, trainer=replace(QUICK, learning_rate=1.0), num_classes=3)
    assert [block_lineage(trained_otherwise, block).name for (block,) in blocks] == features
    longer = replace(shard, model=replace(model, max_length=9))
    assert not {block_lineage(longer, block).name for (block,) in blocks} & set(features)


def test_features_need_a_base():
    with pytest.raises(ValueError, match="a tabular model's features are its inputs"):
        block_lineage(planned(ROWS), ("a",))


def test_predictions_are_named_by_checkpoint_and_examples():
    chain = planned(ROWS)
    checkpoint, digest = "ab" * 32, content_digest("one", 0)
    lineage = predictions_lineage(chain, checkpoint, ("t",), (digest,))
    assert lineage.parents == (checkpoint,)
    assert lineage.examples == ("t",)
    others = [
        predictions_lineage(chain, "cd" * 32, ("t",), (digest,)),
        predictions_lineage(chain, checkpoint, ("u",), (digest,)),
        predictions_lineage(chain, checkpoint, ("t",), (content_digest("one", 1),)),
        predictions_lineage(replace(chain, trainer=replace(QUICK, threads=2)), checkpoint, ("t",), (digest,)),
    ]
    assert len({lineage.name, *(other.name for other in others)}) == 5
    assert predictions_lineage(replace(chain, seed=9), checkpoint, ("t",), (digest,)).name == lineage.name
