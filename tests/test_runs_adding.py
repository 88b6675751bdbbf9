from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chains import PERCEPTRON, QUICK
from fairsisa.data.synthetic_samples import load_synthetic_tabular
from fairsisa.errors import DataError, RequestError, RunError, TrainingError
from fairsisa.execution import Event
from fairsisa.runs import adding
from fairsisa.runs.adding import add_examples, joined, load_more
from fairsisa.runs.assembly import assemble
from fairsisa.runs.directory import Run
from fairsisa.runs.making import Workplace, train_missing
from fairsisa.runs.unlearning import queue_request
from fairsisa.settings import RunSettings, TrainerSettings
from fairsisa.sisa.partition import Partition
from fairsisa.store import Store
from fairsisa.tables import Examples
from unlearning_cases import (
    HERE,
    TABULAR,
    WITH_BASELINES,
    copied,
    forget,
    held_out,
    holders_of,
    in_slice,
    keys_of,
    request,
    served_digests,
    silent,
    train_again,
    trained_in,
    verified,
)

SHORT = replace(QUICK, batch_size=16, max_epochs=1.0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


def more(count: int = 40, *, seed: int = 9, prefix: str = "new-") -> Examples:
    """Return examples of the same columns under other ids, of other people."""
    drawn = load_synthetic_tabular(num_examples=count, seed=seed)
    words = {"example_id": "synthetic-", "subject_id": "person-"}  # no new id may hold an old one
    changed = {name: drawn.frame[name].str.replace(word, prefix) for name, word in words.items()}
    return Examples(drawn.name, drawn.frame.assign(**changed), drawn.classes)


def add(run: Run, new: Examples, *, on_event: Any = silent, evaluate: bool = False) -> Any:
    return add_examples(run, new, keys=keys_of(run), execution=HERE, on_event=on_event, evaluate=evaluate)


def from_scratch(run: Run, folder: Path) -> dict[str, list[str]]:
    """Train the run's chains in an empty store; return the SHA-256 of every checkpoint."""
    baselines = [name.removeprefix("baseline-") for name in run.ensemble.baselines]
    elsewhere = assemble(run.settings, run.examples, run.partition, str(folder.resolve()), baselines=baselines)
    results = train_missing(elsewhere, Workplace(run, run.settings, HERE, silent))
    found: dict[str, list[str]] = {}
    for result in results:
        found.setdefault(result.constituent, []).append(Store(folder).manifest(result.checkpoint).sha256)
    return found


def moved(before: Partition, after: Partition) -> pd.DataFrame:
    both = before.frame().merge(after.frame(), on="example_id", how="left", suffixes=("", "_after"))
    return both[(both["shard"] != both["shard_after"]) | (both["slice"] != both["slice_after"])]


def test_only_the_new_slice_is_trained_and_nothing_old_moves(run):
    before, partition, digests, events = run.ensemble, run.partition, served_digests(run), list[Event]()
    new, old = more(), run.examples.example_ids
    add(run, new, on_event=events.append)
    assert sorted(run.examples.example_ids) == sorted([*old, *new.example_ids])
    after = run.ensemble
    trained = {(e.constituent, e.slice) for e in events if e.kind == "slice_done" and e.values["status"] == "trained"}
    assert trained == {("shard-0", 3), ("shard-1", 3)}
    for name, steps in before.checkpoints.items():
        assert after.checkpoints[name][:3] == steps
        assert served_digests(run)[name][:3] == digests[name]
    assert moved(partition, run.partition).empty
    train = set(new.split("train")["example_id"])
    frame = run.partition.frame()
    assert set(frame.loc[frame["slice"] == 3, "example_id"]) == train
    assert (run.num_slices, run.ensemble.generation) == (4, 1)
    assert [path.name for path in sorted(run.path("tables").iterdir())] == ["examples-1.parquet", "partition-1.parquet"]


@pytest.mark.parametrize(
    ("model", "trainer"),
    [
        ("logistic", SHORT),
        ("logistic", replace(SHORT, budget="per_slice", schedule="chain")),
        ("logistic", replace(SHORT, budget="listed", slice_epochs=(1.0, 2.0, 0.5), schedule="constant")),
        ("mlp", replace(SHORT, schedule="chain", optimizer_state="carried")),
    ],
    ids=["compute_matched", "per_slice chain", "listed constant", "carried chain"],
)
def test_adding_equals_training_the_longer_chain_from_scratch(tmp_path, model, trainer):
    settings = replace(TABULAR, trainer=trainer, model=PERCEPTRON if model == "mlp" else TABULAR.model)
    run = trained_in(tmp_path, settings)
    add(run, more())
    assert from_scratch(run, tmp_path / "scratch") == served_digests(run)
    epochs = pd.read_csv(run.path("training.csv")).set_index(["shard", "slice"])["epochs"]
    assert epochs["shard-0", 3] == pytest.approx(last_epochs(trainer), abs=0.05)


def last_epochs(trainer: TrainerSettings) -> float:
    return {"compute_matched": 2 * trainer.max_epochs / 4, "per_slice": trainer.max_epochs, "listed": 0.5}[
        trainer.budget
    ]


def test_adding_twice_makes_two_slices(run, tmp_path):
    add(run, more(prefix="first-"))
    add(run, more(seed=10, prefix="second-"))
    assert run.num_slices == 5
    assert from_scratch(run, tmp_path / "scratch") == served_digests(run)


def test_adding_then_forgetting_is_exact(run, tmp_path):
    new = more()
    add(run, new)
    gone = (*in_slice(run, 0, 3), *in_slice(run, 1, 1))
    forget(run, *gone)
    assert from_scratch(run, tmp_path / "scratch") == served_digests(run)
    assert holders_of(run.directory, gone) | holders_of(run.store.root, gone) == set()
    assert verified(run, "replay").passed


def test_baselines_begin_anew(tmp_path):
    run = trained_in(tmp_path, WITH_BASELINES)
    before = run.ensemble.baselines
    report = add(run, more(), evaluate=True)
    assert report.baselines == ("baseline whole", "baseline fraction")
    assert run.store.example_ids(run.ensemble.baselines["baseline-whole"][-1]) == set(run.partition.example_ids)
    assert set(before) == set(run.ensemble.baselines)
    assert not {step for steps in before.values() for step in steps} & run.ensemble.names
    assert from_scratch(run, tmp_path / "scratch") == served_digests(run)


def test_an_interrupted_addition_goes_on(run, original, monkeypatch, tmp_path):
    def fail(*arguments: Any) -> Any:
        raise TrainingError("the power went")

    for step in ("train_missing", "completed", "settle"):
        with monkeypatch.context() as broken:
            broken.setattr(adding, step, fail)
            with pytest.raises(TrainingError, match="the power went"):
                add(run, more())
        if step != "settle":
            assert run.num_slices == 3
    straight = copied(original, tmp_path / "straight")
    add(straight, more())
    add(run, more())
    assert served_digests(run) == served_digests(straight)
    assert run.ensemble == straight.ensemble
    assert run.partition == straight.partition
    lines = [len(found.path("training.csv").read_text().splitlines()) for found in (run, straight)]
    assert lines == [9, 9]


def test_the_same_addition_again_changes_nothing(run):
    add(run, more())
    before, digests = run.ensemble.checkpoints, served_digests(run)
    add(run, more())
    assert (run.ensemble.checkpoints, served_digests(run), run.num_slices) == (before, digests, 4)


def test_examples_of_no_training_split_join_theirs(run):
    new = more()
    new = new.keep((new.frame["split"] != "train").to_numpy())
    before = run.ensemble
    report = add(run, new, evaluate=True)
    assert (run.num_slices, run.ensemble.checkpoints) == (3, before.checkpoints)
    assert report is not None
    assert set(new.split("test")["example_id"]) <= set(run.examples.split("test")["example_id"])
    (scores,) = {run.store.manifest(name).lineage.examples for name in run.ensemble.predictions["test"].values()}
    assert set(scores) == set(run.examples.split("test")["example_id"])


def test_who_was_forgotten_may_not_come_back(run):
    frame = run.examples.frame.set_index("example_id")
    (gone,) = in_slice(run, 0, 1)
    subject = frame.loc[held_out(run, "test")[0], "subject_id"]
    row = run.examples.keep(frame.index == gone)
    forget(run, gone)
    forget(run, subjects=(subject,))
    with pytest.raises(RequestError, match=rf"1 of the new examples or their subjects were forgotten .*'{gone}'"):
        add(run, row)
    other = more(1)
    returned = Examples(other.name, other.frame.assign(subject_id=subject), other.classes)
    with pytest.raises(RequestError, match=r"forgotten before, the first is .*: take them out"):
        add(run, returned)
    assert (run.num_slices, gone in run.examples.example_ids) == (3, False)


def test_a_request_that_only_waits_holds_new_examples_back_too(run):
    subject = run.examples.frame["subject_id"].iloc[0]
    queue_request(run, request(subjects=(subject,)), keys=keys_of(run))
    other = more(1)
    with pytest.raises(RequestError, match="were forgotten before"):
        add(run, Examples(other.name, other.frame.assign(subject_id=subject), other.classes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda frame: frame.drop(columns="feature:mixed_0"),
            r"columns of 'synthetic_tabular'; feature:mixed_0 differ",
        ),
        (lambda frame: frame.assign(**{"feature:odd": frame["feature:mixed_0"]}), "feature:odd differ"),
        (lambda frame: frame.drop(columns="sensitive:region"), "sensitive:region differ"),
    ],
)
def test_other_columns_are_refused(run, change, said):
    new = more()
    with pytest.raises(DataError, match=said):
        add(run, Examples(new.name, change(new.frame), new.classes))
    assert run.num_slices == 3


def test_other_classes_and_other_contents_are_refused(run):
    new = more()
    with pytest.raises(DataError, match=r"Expected the classes \['unhappy', 'happy'\], got \['no', 'yes'\]"):
        add(run, Examples(new.name, new.frame, ("no", "yes")))
    changed = run.examples.frame.iloc[:1].copy()
    changed["feature:mixed_0"] += 1
    with pytest.raises(DataError, match=r"1 new examples have ids that the run holds with other contents; the first"):
        add(run, Examples(new.name, changed, new.classes))
    assert run.num_slices == 3


def test_columns_in_another_order_are_no_others(run):
    new = more()
    turned = Examples(new.name, new.frame[new.frame.columns[::-1]], new.classes)
    pd.testing.assert_frame_equal(joined(run.examples, turned).frame, joined(run.examples, new).frame)


def test_a_run_at_work_or_untrained_is_refused(run):
    with run.locked(), pytest.raises(RunError, match="Another command is at work"):
        add(run, more())
    run.publish(replace(run.ensemble, status="untrained"))
    with pytest.raises(RunError, match="is not trained"):
        add(run, more())


def test_more_is_loaded_as_the_corpus_was(tmp_path):
    frame = load_synthetic_tabular(num_examples=90).frame
    frame.iloc[:60].to_csv(tmp_path / "first.csv", index=False)
    frame.iloc[60:].to_csv(tmp_path / "more.csv", index=False)
    columns = {
        "label": "label",
        "example_id": "example_id",
        "subject_id": "subject_id",
        "split": "split",
        "numeric": ["feature:mixed_0", "feature:mixed_1"],
        "sensitive": ["sensitive:region"],
        "classes": ["0", "1"],
    }
    settings: RunSettings = replace(
        TABULAR, data={"name": "own", "path": str(tmp_path / "first.csv"), "columns": columns}
    )
    run = trained_in(tmp_path, settings)
    new = load_more(run, {"name": None, "path": str(tmp_path / "more.csv")}, root=None, cache=tmp_path)
    assert list(new.example_ids) == frame["example_id"].tolist()[60:]
    add(run, new)
    assert set(run.examples.example_ids) == set(frame["example_id"])
    assert {result.status for result in train_again(run, settings)} == {"reused"}
