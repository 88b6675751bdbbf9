from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairsisa.errors import StaleError
from fairsisa.runs import unlearning
from fairsisa.runs.directory import DEGRADED, Run
from fairsisa.runs.doctor import examine
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.fitting import DOCUMENT, KIND, REFITTING, SILENT, WITHDRAWN, load_fitted
from fairsisa.runs.postprocessing import postprocess_run
from fairsisa.settings import PostprocessSettings
from fairsisa.sisa.certificate import decode
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

FAIR = replace(TABULAR, data={"name": "synthetic_tabular", "options": {"num_examples": 400, "repeat_share": 0.3}})
RULE = PostprocessSettings(
    strategy="ensemble_vote_count", sensitive_feature=("region",), small_cells="ignore", tolerance=(0.1,), name="fair"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = trained_in(tmp_path_factory.mktemp("original"), FAIR)
    fit(run)
    return run


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


def fit(run: Run, **changes: Any) -> None:
    postprocess_run(run, replace(RULE, **changes), execution=HERE, on_event=silent, evaluate=False)


def artefact_of(run: Run, name: str = "fair") -> str | None:
    artefact: str | None = run.ensemble.postprocessors[name]["artefact"]
    return artefact


def document_of(run: Run) -> bytes:
    return bytes(run.store.get(str(artefact_of(run))).tensors[DOCUMENT].numpy().tobytes())


def without(original: Run, gone: tuple[str, ...], folder: Path) -> Run:
    """Train and post-process a run that never held the examples."""
    run, examples = Run(folder / "run"), original.examples
    kept = examples.keep(~examples.frame["example_id"].isin(gone).to_numpy())
    partition = original.partition.without(gone)
    run.begin(
        original.settings, kept, partition, source=None, store=str(folder / "store"), environment=original.environment
    )
    trained_in(folder, FAIR)
    fit(run)
    return run


def of_group(run: Run, split: str, group: str) -> tuple[str, ...]:
    rows = run.examples.split(split)
    return tuple(rows.loc[rows["sensitive:region"] == group, "example_id"])


@pytest.mark.parametrize("place", ["training", "calibration", "all splits"])
def test_it_is_refitted_as_if_the_examples_had_never_been_there(run, original, tmp_path, place):
    gone = {
        "training": in_slice(run, 1, 1, 3),
        "calibration": held_out(run, CALIBRATION, 2),
        "all splits": (*in_slice(run, 0, 2), *held_out(run, CALIBRATION), *held_out(run, TEST)),
    }[place]
    before = artefact_of(run)
    forget(run, *gone)
    other = without(original, gone, tmp_path / "other")
    assert artefact_of(run) != before
    assert artefact_of(run) == artefact_of(other)
    assert document_of(run) == document_of(other)
    assert not run.store.has(before)
    assert set(run.store.names()) == run.ensemble.names == set(other.store.names())
    assert load_fitted(run, "fair").to_dict() == json.loads(document_of(run))
    assert verified(run).passed
    assert holders_of(run.directory.parent, gone) == set()


def test_deleting_a_calibration_row_changes_what_stands_on_it_and_nothing_else(run):
    before = run.ensemble
    forget(run, *held_out(run, CALIBRATION))
    after = run.ensemble
    assert after.checkpoints == before.checkpoints
    assert after.predictions[TEST] == before.predictions[TEST]
    assert not set(after.predictions[CALIBRATION].values()) & set(before.predictions[CALIBRATION].values())
    assert after.postprocessors["fair"]["artefact"] != before.postprocessors["fair"]["artefact"]
    rows = tuple(run.examples.split(CALIBRATION)["example_id"])
    assert run.store.manifest(str(artefact_of(run))).lineage.examples == rows


def test_deleting_a_test_row_leaves_it_as_it_is(run):
    before, document = artefact_of(run), document_of(run)
    forget(run, *held_out(run, TEST))
    assert (artefact_of(run), document_of(run)) == (before, document)


def test_the_reports_are_remade_with_it(run):
    evaluate_run(run, execution=HERE, on_event=silent)
    page, rows = run.path("postprocess-fair.html"), len(run.examples.split(TEST))
    before = page.read_bytes()
    out = forget(run, *in_slice(run, 1, 0, 8), settings=replace(PLAIN, evaluate=True))
    assert out.report is not None
    assert "fair fair" in out.report.evaluation.predictors
    assert page.read_bytes() != before
    assert json.loads(run.path("postprocess-fair.json").read_text())["num_test"] == rows
    forget(run, *in_slice(run, 1, 0))
    assert not page.exists()
    assert verified(run).passed


def test_the_evidence_names_what_was_replaced(run):
    before = artefact_of(run)
    out = forget(run, *in_slice(run, 1, 2))
    events = [event for event in ledger_of(run).history() if event.state == "retraining"]
    assert events[-1].detail["postprocessors"] == {"fair": {"old": before, "new": artefact_of(run)}}
    certificate = decode(out.certificates[0].read_bytes(), ledger_of(run).key)
    assert {made.kind: made.names for made in certificate.purged}[KIND] == (before,)


def test_a_group_that_vanishes_withdraws_it_and_holds_no_deletion_up(run):
    group = str(run.examples.split(CALIBRATION)["sensitive:region"].iloc[0])
    gone = of_group(run, CALIBRATION, group)
    out = forget(run, *gone, settings=replace(PLAIN, evaluate=True))
    assert len(out.certificates) == 1
    entry = run.ensemble.postprocessors["fair"]
    assert (entry["artefact"], entry["reason"]) == (None, WITHDRAWN)
    assert out.report is not None
    assert not [name for name in out.report.evaluation.predictors if name.startswith("fair ")]
    assert any("out of service" in warning for warning in out.report.warnings)
    with pytest.raises(
        StaleError, match=r"'fair' is out of service, .* a group has lost its last one.*: run `fairsisa"
    ):
        load_fitted(run, "fair")
    (complaint,) = [found for found in examine(run, keys=keys_of(run)) if found.check == "post-processors"]
    assert complaint.is_problem
    assert complaint.cure.startswith(f"run `fairsisa postprocess run={run.directory} name=fair ")
    forget(run, *in_slice(run, 0, 0))
    assert artefact_of(run) is None  # not silently back without the group
    fit(run)
    assert artefact_of(run) is not None
    assert [found for found in examine(run, keys=keys_of(run)) if found.check == "post-processors"] == []


def test_a_label_that_a_group_loses_withdraws_it(run):
    rows = run.examples.split(CALIBRATION)
    group = str(rows["sensitive:region"].iloc[0])
    gone = tuple(rows.loc[(rows["sensitive:region"] == group) & (rows["label"] == 1), "example_id"])
    assert len(forget(run, *gone).certificates) == 1
    assert run.ensemble.postprocessors["fair"]["reason"] == WITHDRAWN
    assert verified(run).passed


def test_without_votes_it_is_withdrawn(run):
    forget(run, *run.partition.example_ids)
    assert run.ensemble.postprocessors["fair"] == {
        **run.ensemble.postprocessors["fair"],
        "artefact": None,
        "reason": SILENT,
    }
    assert verified(run).passed


def test_calibration_may_go_whole(run):
    forget(run, *run.examples.split(CALIBRATION)["example_id"])
    assert artefact_of(run) is None
    assert set(run.store.names(KIND)) == set()


def test_an_emptied_shard_leaves_the_vote_and_the_fit(run):
    forget(run, *(example for place in range(3) for example in run.partition.slice_ids(0, place)))
    lineage = run.store.manifest(str(artefact_of(run))).lineage
    assert lineage.parents == (run.ensemble.predictions[CALIBRATION]["shard-1"],)
    assert load_fitted(run, "fair").num_constituents_ == 1


def test_while_constituents_are_missing_it_is_out_of_service(run, monkeypatch):
    served = []

    def stop(*_: Any) -> Any:
        served.append(run.pointer)
        with pytest.raises(StaleError, match=r"out of service, it is being refitted: run `fairsisa unlearn flush run="):
            load_fitted(run, "fair")
        raise KeyboardInterrupt

    before = artefact_of(run)
    with monkeypatch.context() as stopped:
        stopped.setattr(unlearning, "train_missing", stop)
        with pytest.raises(KeyboardInterrupt):
            forget(run, *in_slice(run, 1, 1), settings=replace(PLAIN, degraded=True))
    assert served[0].status == DEGRADED
    assert served[0].postprocessors["fair"]["reason"] == REFITTING
    assert not run.store.has(before)
    unlearning.flush(run, keys=keys_of(run), settings=PLAIN, execution=HERE, on_event=silent)
    assert load_fitted(run, "fair").to_dict() == json.loads(document_of(run))


# Killed

SMALL = [*TRAIN, "data=synthetic_tabular", "data.options.num_examples=300", "model=logistic", ALONE]
POST = ["postprocess", "run=run", ALONE, "strategy=aggregate_first", "sensitive_feature=region", "small_cells=ignore"]


@pytest.fixture(scope="module")
def actors() -> Iterator[Zygote]:
    with zygote(FAIRSISA_KEYS="keys") as made:
        yield made


@pytest.mark.slow
def test_killed_between_refit_and_switch_the_same_command_ends_the_same(actors, tmp_path):
    scene = begin(tmp_path, actors, SMALL)
    fitted = scene.act([*POST, "name=fair"])
    assert fitted.code == 0, fitted.said
    scene = replace(scene, copy=tmp_path / "fitted")
    import shutil

    shutil.copytree(scene.root, scene.copy)
    gone = (*in_slice(scene.run, 0, 1), *held_out(scene.run, CALIBRATION))
    words = [*UNLEARN, f"request.ids=[{','.join(gone)}]", "unlearning.evaluate=false"]
    done = scene.act(words)
    assert done.code == 0, done.said
    end = end_of(scene) | {"fair": scene.run.ensemble.postprocessors}
    puts = [n for n, met in enumerate(done.boundaries) if any("runs/fitting.py" in line for line in met.site)]
    pointer = next(n for n, met in enumerate(done.boundaries) if n > puts[-1] and met.path.endswith("ensemble.json"))
    for number in (puts[0], puts[len(puts) // 2], puts[-1], pointer):
        scene.restore()
        killed, again = scene.act(words, Fault("signal", at=number)), scene.act(words)
        assert killed.code == KILLED, killed.said
        assert again.code == 0, again.said
        assert end_of(scene) | {"fair": scene.run.ensemble.postprocessors} == end
        assert problems_of(scene, gone) == []
