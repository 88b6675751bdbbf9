from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairsisa.compression.artefacts import COPY, STUDENT
from fairsisa.errors import ConfigError, StaleError
from fairsisa.runs import unlearning
from fairsisa.runs.adding import add_examples
from fairsisa.runs.compressing import descend_run, remove_descendant
from fairsisa.runs.descendants import LOST, OUTDATED, REBUILDING, Recipe, recipe_of
from fairsisa.runs.directory import DEGRADED, Descendant, Run
from fairsisa.runs.doctor import examine
from fairsisa.runs.networks import origin_of
from fairsisa.runs.postprocessing import postprocess_run
from fairsisa.runs.training import train_run
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    PathSettings,
    PostprocessSettings,
)
from fairsisa.tables import CALIBRATION, TEST
from faults import KILLED, Fault, Zygote, zygote
from scenes import ALONE, TRAIN, UNLEARN, begin, end_of, problems_of
from unlearning_cases import (
    HERE,
    PLAIN,
    TABULAR,
    copied,
    forget,
    held_out,
    holders_of,
    in_slice,
    keys_of,
    ledger_of,
    silent,
    trained_in,
    verified,
)

SMALL = replace(TABULAR, data={"name": "synthetic_tabular", "options": {"num_examples": 300, "repeat_share": 0.3}})
RULE = PostprocessSettings(
    strategy="ensemble_vote_count", sensitive_feature=("region",), small_cells="ignore", tolerance=(0.1,), name="rule"
)
QUICK = {"max_epochs": 1.0, "batch_size": 16}
WANDA = ({"method": "wanda", "sparsity": 0.3},)
FEW = CalibrationSettings(num_examples=5)
RECIPES = {
    "mean": Recipe(distil=DistillationSettings(name="mean", trainer=QUICK)),
    "fair": Recipe(distil=DistillationSettings(name="fair", teacher="fair", postprocessor="rule", trainer=QUICK)),
    "own": Recipe(distil=DistillationSettings(name="own", scope="shard", trainer=QUICK)),
    "sparse": Recipe(compress=(CompressionSettings(WANDA, name="sparse"), FEW)),
    "rounded": Recipe(compress=(CompressionSettings(("round_to_nearest_8",), name="rounded"), FEW)),
    "mean-sparse": Recipe(compress=(CompressionSettings(WANDA, source="mean", name="mean-sparse"), FEW)),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = trained_in(tmp_path_factory.mktemp("original"), SMALL)
    postprocess_run(run, RULE, execution=HERE, on_event=silent, evaluate=False)
    make(run, *RECIPES.values())
    return run


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


def make(run: Run, *recipes: Recipe) -> None:
    for recipe in recipes:
        descend_run(run, recipe, execution=HERE, on_event=silent, evaluate=False)


def of(run: Run, name: str) -> Descendant:
    return run.ensemble.descendants[name]


def asked(name: str, when_outdated: str) -> Recipe:
    recipe = RECIPES[name]
    if recipe.compress is None:
        return Recipe(distil=replace(recipe.student, when_outdated=when_outdated))
    settings, calibration = recipe.compress
    return Recipe(compress=(replace(settings, when_outdated=when_outdated), calibration))


def without(original: Run, gone: tuple[str, ...], folder: Path) -> Run:
    """Train a run that never held the examples, and make all its descendants."""
    run, examples = Run(folder / "run"), original.examples
    kept = examples.keep(~examples.frame["example_id"].isin(gone).to_numpy())
    partition = original.partition.without(gone)
    run.begin(
        original.settings, kept, partition, source=None, store=str(folder / "store"), environment=original.environment
    )
    trained_in(folder, SMALL)
    postprocess_run(run, RULE, execution=HERE, on_event=silent, evaluate=False)
    make(run, *RECIPES.values())
    return run


def drawn(run: Run) -> str:
    """Return an example that Wanda was calibrated on."""
    return run.store.manifest(of(run, "sparse").models["shard-0"]).lineage.examples[0]


def undrawn(run: Run) -> str:
    used = set(run.store.manifest(of(run, "sparse").models["shard-0"]).lineage.examples)
    return next(example for example in run.examples.split(CALIBRATION)["example_id"] if example not in used)


@pytest.mark.parametrize("place", ["training", "calibration", "all splits"])
def test_they_are_made_anew_as_if_the_examples_had_never_been_there(run, original, tmp_path, place):
    gone = {
        "training": in_slice(run, 1, 1, 3),
        "calibration": (drawn(run),),
        "all splits": (*in_slice(run, 0, 2), *held_out(run, CALIBRATION), *held_out(run, TEST)),
    }[place]
    before = run.ensemble.descendants
    forget(run, *gone)
    other = without(original, gone, tmp_path / "other")
    assert run.ensemble.descendants == other.ensemble.descendants
    changed = {name for name, made in run.ensemble.descendants.items() if made.models != before[name].models}
    assert changed == ({"fair", "sparse", "mean-sparse"} if place == "calibration" else set(RECIPES))
    names = {name for made in other.ensemble.descendants.values() for name in made.names}
    assert {run.store.manifest(name).sha256 for name in names} == {other.store.manifest(name).sha256 for name in names}
    assert verified(run).passed
    assert holders_of(run.directory.parent, gone) == set()
    assert [found for found in examine(run, keys=keys_of(run)) if found.is_problem] == []


def test_each_knows_its_parents_and_its_rows(run):
    lineage = run.store.manifest(of(run, "mean").models["student"]).lineage
    scores = [run.store.manifest(parent).lineage for parent in lineage.parents]
    training = tuple(run.examples.split("train")["example_id"])
    assert [each.examples for each in scores] == [training] * len(run.ensemble.checkpoints)
    assert [each.parents[0] for each in scores] == [steps[-1] for steps in run.ensemble.checkpoints.values()]
    rule = run.ensemble.postprocessors["rule"]["artefact"]
    assert rule in run.store.manifest(of(run, "fair").models["student"]).lineage.parents
    sparse = run.store.manifest(of(run, "sparse").models["shard-1"]).lineage
    assert sparse.parents == (run.ensemble.checkpoints["shard-1"][-1],)
    assert set(sparse.examples) <= set(run.examples.split(CALIBRATION)["example_id"])
    assert len(sparse.examples) == FEW.num_examples
    assert run.store.manifest(of(run, "rounded").models["shard-1"]).lineage.examples == ()
    assert run.store.manifest(of(run, "mean-sparse").models["student"]).lineage.parents == (
        of(run, "mean").models["student"],
    )


def test_a_student_of_a_shard_stands_on_that_shard_alone(run):
    before = of(run, "own").models
    for member, name in before.items():
        rows = run.partition.frame()
        own = set(rows.loc[rows["shard"] == int(member.removeprefix("shard-")), "example_id"])
        parents = run.store.manifest(name).lineage.parents
        assert {example for parent in parents for example in run.store.manifest(parent).lineage.examples} == own
    forget(run, *in_slice(run, 1, 2))
    after = of(run, "own").models
    assert after["shard-0"] == before["shard-0"]
    assert after["shard-1"] != before["shard-1"]
    assert not run.store.has(before["shard-1"])


def test_a_calibration_row_that_was_not_drawn_changes_no_copy(run):
    before = of(run, "sparse")
    forget(run, undrawn(run))
    assert of(run, "sparse").models == before.models
    assert of(run, "sparse").predictions[CALIBRATION] != before.predictions[CALIBRATION]
    assert of(run, "sparse").predictions[TEST] == before.predictions[TEST]


def test_a_test_row_changes_no_model(run):
    before = run.ensemble.descendants
    forget(run, *held_out(run, TEST))
    assert {name: made.models for name, made in run.ensemble.descendants.items()} == {
        name: made.models for name, made in before.items()
    }


@pytest.mark.parametrize("place", ["training", "calibration"])
@pytest.mark.parametrize("when", ["rebuild", "stale", "remove"])
@pytest.mark.parametrize("name", ["mean", "fair", "own", "sparse"])
def test_what_is_outdated_is_rebuilt_stale_or_removed_as_set(run, name, when, place):
    remove_descendant(run, "mean-sparse")
    make(run, asked(name, when))
    before = of(run, name)
    forget(run, *(in_slice(run, 1, 0) if place == "training" else (drawn(run),)))
    touched = place == "training" or name in ("fair", "sparse")
    if not touched:
        assert of(run, name).models == before.models
    elif when == "remove":
        assert name not in run.ensemble.descendants
    elif when == "stale":
        assert (of(run, name).models, of(run, name).reason) == ({}, OUTDATED)
    else:
        assert of(run, name).models != before.models
    if touched:
        gone = set(before.models.values()) - set(getattr(run.ensemble.descendants.get(name), "models", {}).values())
        assert gone
        if name != "own" or place == "training":
            doomed = [artefact for artefact in gone if run.store.has(artefact)]
            assert len(doomed) == (
                len(before.models) - 1 if name in ("own", "sparse") and place == "training" and when != "rebuild" else 0
            )
    assert verified(run).passed


def test_what_is_stale_stays_so_until_it_is_asked_for_again(run):
    make(run, asked("mean", "stale"))
    forget(run, *in_slice(run, 0, 0))
    forget(run, *in_slice(run, 1, 0))
    assert of(run, "mean").reason == OUTDATED
    assert of(run, "mean-sparse").reason == LOST
    complaints = [found for found in examine(run, keys=keys_of(run)) if found.check == "students and copies"]
    assert [found.what.split("'")[1] for found in complaints] == ["mean", "mean-sparse"]
    with pytest.raises(StaleError, match="'mean', which is to be compressed, is out of service"):
        make(run, RECIPES["mean-sparse"])
    make(run, asked("mean", "stale"))
    assert of(run, "mean").models
    make(run, RECIPES["mean-sparse"])
    assert [found for found in examine(run, keys=keys_of(run)) if found.check == "students and copies"] == []


def test_another_student_under_the_same_name_renews_its_copies(run):
    before = of(run, "mean-sparse").models
    old = of(run, "mean").models["student"]
    make(run, Recipe(distil=DistillationSettings(name="mean", temperature=2.0, trainer=QUICK)))
    assert of(run, "mean-sparse").models != before
    assert not run.store.has(old)
    assert not run.store.has(before["student"])
    with pytest.raises(ConfigError, match=r"mean-sparse of .* copies of mean: remove them first"):
        remove_descendant(run, "mean")


def test_removing_leaves_nothing_behind(run):
    for name in ("mean-sparse", "mean", "fair", "own", "sparse", "rounded"):
        remove_descendant(run, name)
    assert run.store.names(STUDENT) == run.store.names(COPY) == ()
    assert run.ensemble.descendants == {}
    with pytest.raises(ConfigError, match=r"has no student or compressed copy 'mean'\. It has none"):
        remove_descendant(run, "mean")


def test_without_its_teacher_a_fair_student_is_out_of_service_and_holds_no_deletion_up(run):
    rows = run.examples.split(CALIBRATION)
    group = str(rows["sensitive:region"].iloc[0])
    out = forget(run, *rows.loc[rows["sensitive:region"] == group, "example_id"])
    assert len(out.certificates) == 1
    assert (of(run, "fair").models, of(run, "fair").reason) == ({}, LOST)
    assert of(run, "mean").models
    assert verified(run).passed


def test_all_training_examples_may_go(run):
    forget(run, *run.partition.example_ids)
    assert {name: made.reason for name, made in run.ensemble.descendants.items() if name != "own"} == dict.fromkeys(
        set(RECIPES) - {"own"}, LOST
    ) | {name: made.reason for name, made in run.ensemble.descendants.items() if made.reason is None and name != "own"}
    assert not any(made.models for made in run.ensemble.descendants.values())
    assert verified(run).passed


def test_while_constituents_are_missing_what_stands_on_them_is_out_of_service(run, monkeypatch):
    served = []

    def stop(*_: Any) -> Any:
        served.append(run.pointer)
        raise KeyboardInterrupt

    before = run.ensemble.descendants
    with monkeypatch.context() as stopped:
        stopped.setattr(unlearning, "train_missing", stop)
        with pytest.raises(KeyboardInterrupt):
            forget(run, *in_slice(run, 1, 1), settings=replace(PLAIN, degraded=True))
    assert served[0].status == DEGRADED
    assert {name for name, made in served[0].descendants.items() if made.reason == REBUILDING} == set(RECIPES)
    assert not run.store.has(before["mean"].models["student"])
    unlearning.flush(run, keys=keys_of(run), settings=PLAIN, execution=HERE, on_event=silent)
    assert all(made.models for made in run.ensemble.descendants.values())
    assert verified(run).passed


def test_the_evidence_names_what_was_replaced(run):
    before = of(run, "mean").models
    forget(run, *in_slice(run, 1, 2))
    events = [event for event in ledger_of(run).history() if event.state == "retraining"]
    told = events[-1].detail["descendants"]
    assert told["mean"] == {"old": before, "new": dict(of(run, "mean").models), "reason": None}


def test_training_again_changes_nothing(run):
    before = run.ensemble
    paths = PathSettings(store=str(run.directory.parent / "store"))
    train_run(run.settings, run, paths=paths, execution=HERE, on_event=silent)
    assert run.ensemble == before


def test_added_examples_reach_the_students(run):
    before = of(run, "mean").models
    new = run.examples.split("train").head(3)
    frame = new.assign(example_id=[f"new-{row}" for row in range(len(new))])
    frame = frame.assign(subject_id=frame["example_id"])
    added = replace(run.examples, frame=frame)
    add_examples(run, added, keys=keys_of(run), execution=HERE, on_event=silent, evaluate=False)
    assert of(run, "mean").models != before
    rows = run.store.manifest(run.store.manifest(of(run, "mean").models["student"]).lineage.parents[0]).lineage.examples
    assert set(frame["example_id"]) <= set(rows)


OTHER = {"max_epochs": 2.0, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.1, "warmup": 0.5} | {
    "schedule": "constant",
    "gradient_clip": None,
    "threads": 2,
}


def test_a_name_covers_what_training_a_student_reads(original):
    def name(**changes: Any) -> str:
        settings = replace(RECIPES["mean"].student, **changes)
        return Recipe(distil=settings).plan(origin_of(original, HERE, silent))["student"].name

    same = name()
    others = [name(trainer={**QUICK, key: value}) for key, value in OTHER.items()]
    others += [name(**{key: 0.5}) for key in ("soft", "hard", "temperature")]
    others += [name(model={"kind": "mlp", "hidden": [4]}), name(teacher="majority_vote"), name(teacher="shard-0")]
    assert len({same, *others}) == len(others) + 1
    assert same == name(name="other", when_outdated="stale", trainer={**QUICK, "log_every_n_steps": 3})


def test_a_recipe_reads_back_from_the_pointer(run):
    assert {name: recipe_of(made) for name, made in run.ensemble.descendants.items()} == RECIPES


# Killed

WORLD = [*TRAIN, "data=synthetic_tabular", "data.options.num_examples=300", "model=logistic", ALONE]


@pytest.fixture(scope="module")
def actors() -> Iterator[Zygote]:
    with zygote(FAIRSISA_KEYS="keys") as made:
        yield made


@pytest.mark.slow
def test_killed_while_they_are_rebuilt_the_same_command_ends_the_same(actors, tmp_path):
    scene = begin(tmp_path, actors, WORLD)
    for words in (
        ["distil", "run=run", ALONE, "name=mini", "trainer.max_epochs=1"],
        ["prune", "run=run", ALONE, "name=sparse", "sparsity=0.3", "calibration.num_examples=4"],
    ):
        done = scene.act(words)
        assert done.code == 0, done.said
    scene = replace(scene, copy=tmp_path / "made")
    shutil.copytree(scene.root, scene.copy)
    gone = (*in_slice(scene.run, 0, 1), drawn(scene.run))
    words = [*UNLEARN, f"request.ids=[{','.join(gone)}]", "unlearning.evaluate=false"]
    done = scene.act(words)
    assert done.code == 0, done.said
    end = end_of(scene) | {"descendants": scene.run.ensemble.descendants}
    puts = [n for n, met in enumerate(done.boundaries) if any("compression/artefacts.py" in line for line in met.site)]
    assert puts
    pointer = next(n for n, met in enumerate(done.boundaries) if n > puts[-1] and met.path.endswith("ensemble.json"))
    for number in (puts[0], puts[len(puts) // 2], puts[-1], pointer):
        scene.restore()
        killed, again = scene.act(words, Fault("signal", at=number)), scene.act(words)
        assert killed.code == KILLED, killed.said
        assert again.code == 0, again.said
        assert end_of(scene) | {"descendants": scene.run.ensemble.descendants} == end
        assert problems_of(scene, gone) == []
