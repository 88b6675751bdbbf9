from __future__ import annotations

import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from chains import TINY_TEXT
from fairsisa.runs.directory import LEDGER
from faults import KILLED, Attempt, Boundary, Fault, Zygote, zygote
from scenes import ALONE, TABULAR, TRAIN, Case, Scene, asking, begin, end_of, first_of, prepared

TEXT = [
    *TRAIN,
    "data=synthetic_text",
    "data.options.num_examples=60",
    "model=minilm",
    f"model.base={TINY_TEXT.base}",
    "model.architecture=bert",
    *(f"+model.shape.{key}={value}" for key, value in TINY_TEXT.shape.items()),
    "model.max_length=40",
]
SLOW = pytest.mark.slow
AT_A_KILL = frozenset(("open", "rename", "link", "unlink", "mkdir", "rmdir", "commit"))
"""What changes the files; a sync does not, so a kill before it leaves what a kill before the next of these leaves."""


@pytest.fixture(scope="module")
def actors() -> Iterator[Zygote]:
    with zygote(FAIRSISA_KEYS="keys") as made:
        yield made


@pytest.fixture(scope="module")
def scene(actors, tmp_path_factory) -> Scene:
    return begin(tmp_path_factory.mktemp("faults"), actors, [*TABULAR, ALONE])


@pytest.fixture(scope="module")
def case(scene) -> Case:
    return prepared(scene, first_of(scene, 0, 2))


@pytest.fixture(scope="module")
def quick(scene) -> Case:
    return prepared(scene, first_of(scene, 0, 2), "unlearning.evaluate=false")


@pytest.fixture(scope="module")
def degraded(scene) -> Case:
    return prepared(scene, first_of(scene, 0, 2), "unlearning.degraded=true", "unlearning.evaluate=false")


@pytest.fixture(scope="module")
def text(actors, tmp_path_factory) -> Case:
    scene = begin(tmp_path_factory.mktemp("text"), actors, [*TEXT, ALONE])
    ids = first_of(scene, 0, 2)
    frame = scene.run.examples.frame
    found = prepared(scene, ids, "unlearning.evaluate=false")
    return replace(found, gone=(*ids, *frame.loc[frame["example_id"].isin(ids), "text"]))


def one_of_each(boundaries: Sequence[Boundary]) -> list[int]:
    """Return the first boundary of every place in the package: its two innermost lines, and the step of unlearning."""
    found: dict[tuple[str, ...], int] = {}
    for number, met in enumerate(boundaries):
        step = next((line for line in met.site if line.startswith("runs/")), "")
        found.setdefault((met.call, step, *met.site[-2:]), number)
    return [number for number in found.values() if boundaries[number].call in AT_A_KILL]


# Killed


@SLOW
def test_forgetting_equals_never_having_seen(quick):
    scene = quick.scene
    scene.restore()
    assert scene.act(quick.words).code == 0
    replayed = scene.act(["verify", "run=run", "level=replay", "scope=all", ALONE])
    assert replayed.code == 0, replayed.said
    assert "4 checkpoints trained again, all bit for bit equal" in " ".join(replayed.said.split())


@SLOW
@pytest.mark.parametrize("mode", ["quick", "degraded"])
def test_killed_at_a_write_boundary_the_same_command_ends_the_same(mode, request):
    case = request.getfixturevalue(mode)
    chosen = one_of_each(case.boundaries)[:: 2 if mode == "quick" else 3]
    assert len(chosen) > 6
    wrong = {}
    for number in chosen:
        killed, again = case.suffer(Fault("signal", at=number))
        assert killed.code == KILLED, killed.said
        assert killed.fired
        complaints = case.complaints() if again.code == 0 else [again.said]
        if complaints:
            wrong[number, case.boundaries[number]] = complaints
    assert not wrong


@SLOW
def test_killed_while_measuring_the_same_command_writes_the_report(case, quick):
    later = [number for number in one_of_each(case.boundaries) if "runs/evaluating.py" in case.boundaries[number].place]
    measuring = [number for number in later if "forget_reports" not in case.boundaries[number].place]
    wrong = {}
    for number in measuring[-6:]:
        killed, again = case.suffer(Fault("signal", at=number))
        assert killed.code == KILLED, killed.said
        assert again.code == 0, again.said
        complaints = case.complaints()
        if complaints:
            wrong[number, case.boundaries[number]] = complaints
    assert not wrong


@SLOW
def test_killed_at_one_boundary_after_the_other_it_ends_the_same(case):
    case.scene.restore()
    met: list[str] = []
    codes = []
    while not codes or codes[-1] == KILLED:
        done = case.scene.act(case.words, Fault("signal", beyond=tuple(met)))
        met += [boundary.place for boundary in done.boundaries]
        codes.append(done.code)
    assert codes[-1] == 0, done.said
    assert len(codes) > 40
    assert case.complaints() == []


@SLOW
@pytest.mark.parametrize(("mode", "step"), [("case", 0), ("case", 3), ("degraded", 4), ("text", 2), ("text", 5)])
def test_killed_in_the_middle_of_a_slice_the_same_command_ends_the_same(mode, step, request):
    case = request.getfixturevalue(mode)
    killed, again = case.suffer(Fault("signal", step=step))
    assert killed.fired
    assert killed.code == KILLED, killed.said
    assert again.code == 0, again.said
    assert case.complaints() == []


@SLOW
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_person_who_stops_unlearning_is_told_how_to_go_on(number, quick):
    stopped, again = quick.suffer(Fault("signal", step=3, number=number))
    assert stopped.fired
    assert stopped.code in (130, 143, -number), stopped.said
    assert "run the same command to go on" in " ".join(stopped.said.split())
    assert "Traceback" not in stopped.said
    assert again.code == 0, again.said
    assert quick.complaints() == []


# A disk that refuses


def told_in_one_line(attempt: Attempt) -> bool:
    return attempt.code == 1 and "Traceback" not in attempt.said and "fairsisa: " in attempt.said


@SLOW
def test_on_a_full_disk_the_command_says_so_and_ends_the_same_once_there_is_room(case):
    wrong = {}
    chosen = [n for n in one_of_each(case.boundaries) if case.boundaries[n].call in ("open", "rename", "commit")]
    for number in chosen[::2]:
        full, again = case.suffer(Fault("full", at=number))
        assert full.fired
        complaints = [] if told_in_one_line(full) else [f"exit status {full.code}: {full.said[-300:]}"]
        complaints += case.complaints() if again.code == 0 else [again.said]
        if complaints:
            wrong[number, case.boundaries[number]] = complaints
    assert not wrong


@contextmanager
def sealed(*folders: Path) -> Iterator[None]:
    """Take away the right to write, for all folders and files within."""
    modes = {path: path.stat().st_mode for folder in folders for path in (folder, *folder.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@SLOW
@pytest.mark.parametrize("folders", [("run",), ("store",), ("run", "store"), ("run/tables",)])
def test_a_read_only_directory_is_named_and_nothing_is_lost(folders, quick):
    scene = quick.scene
    scene.restore()
    with sealed(*(scene.root / name for name in folders)):
        refused = scene.act(quick.words, Fault("powerless"))
    assert refused.fired
    assert told_in_one_line(refused), refused.said
    assert folders[0] in refused.said
    assert scene.run.examples.frame["example_id"].isin(quick.gone).sum() == 2
    again = scene.act(quick.words)
    assert again.code == 0, again.said
    assert quick.complaints() == []


# Odd requests, odd clocks


@SLOW
def test_the_same_request_twice_changes_nothing(quick):
    scene = quick.scene
    scene.restore()
    assert scene.act(quick.words).code == 0
    events, end = scene.ledger.history(), end_of(scene)
    again = scene.act(quick.words)
    assert again.code == 0
    assert "these requests were attested before" in again.said
    assert scene.ledger.history() == events
    assert end_of(scene) == end


def test_a_request_that_names_an_unknown_id_is_refused_whole(quick):
    scene = quick.scene
    scene.restore()
    refused = scene.act(asking((*quick.gone, "nobody")))
    assert refused.code == 1
    assert "holds no 'nobody'" in refused.said
    assert scene.ledger.requests() == ()
    assert quick.gone[0].encode() not in scene.run.path(LEDGER).read_bytes()


@SLOW
def test_a_clock_that_goes_backwards_changes_no_digest(case):
    scene = case.scene
    scene.restore()
    killed = scene.act(case.words, Fault("signal", step=3, clock=3600.0))
    assert killed.code == KILLED
    done = scene.act(case.words, Fault(clock=86400.0))
    assert done.code == 0, done.said
    assert case.complaints() == []
    times = [event.time for event in scene.ledger.history()]
    assert times == sorted(times)
    (path,) = scene.run.path("certificates").glob("*.json")
    assert scene.act(["verify", "run=run", f"certificate={path}"], Fault(clock=86400.0)).code == 0
    assert scene.act(["doctor", "run=run"], Fault(clock=86400.0)).code == 0


@SLOW
def test_a_whole_shard_can_be_forgotten_through_kills(scene):
    case = prepared(scene, first_of(scene, 0, 10**6))
    served = scene.run.ensemble
    assert not served.predictions["test"].keys() & {"shard-0"}
    for fault in (Fault("signal", at=len(case.boundaries) // 2), Fault("signal", at=4 * len(case.boundaries) // 5)):
        killed, again = case.suffer(fault)
        assert killed.code == KILLED, killed.said
        assert again.code == 0, again.said
        assert case.complaints() == []
