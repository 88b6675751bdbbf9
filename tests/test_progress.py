from __future__ import annotations

import io

import pytest
from rich.console import Console

from fairsisa.execution import Event
from fairsisa.report.progress import MARKS, training_progress

SLICES = {"shard-0": 2, "shard-1": 2, "baseline-whole": 1}
STORY = [
    Event("features_done", "shard-0", values={"examples": 1200}),
    Event("slice_started", "shard-0", 0),
    Event("metrics", "shard-0", 0, 10, {"train_loss": 0.6931, "learning_rate": 0.1}),
    Event("slice_done", "shard-0", 0, 24, {"status": "trained"}),
    Event("slice_done", "shard-1", 0, 7, {"status": "reused"}),
    Event("slice_started", "shard-1", 1),
    Event("slice_done", "shard-1", 1, 0, {"status": "empty"}),
    Event("slice_started", "shard-0", 1),
    Event("metrics", "shard-0", 1, 3, {"train_loss": 0.25}),
    Event("predicted", "shard-1", values={"examples": 40}),
    Event("predicted", "shard-1", values={"examples": 2}),
]


def told(events: list[Event], *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None, legacy_windows=False)
    with training_progress(SLICES, console) as report:
        for event in events:
            report(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_every_finished_piece_is_a_line():
    assert told(STORY, terminal=False).splitlines() == [
        "features of 1200 texts",
        "[1/5] shard-0 slice 0: trained (24 steps)",
        "[2/5] shard-1 slice 0: reused (7 steps)",
        "[3/5] shard-1 slice 1: empty (no steps)",
        "shard-1: predicted 40 examples",
        "shard-1: predicted 2 examples",
    ]


def test_on_a_terminal_the_table_ends_with_all_that_was_told():
    shown = told(STORY, terminal=True).rpartition("constituent")[2]
    rows = [line.split() for line in shown.splitlines()[1:4]]
    marks = {status: mark for status, (mark, _) in MARKS.items()}
    assert rows == [
        ["shard-0", marks["trained"], marks["running"], "0.250", "3"],
        ["shard-1", marks["reused"], marks["empty"], "42"],
        ["baseline-whole", marks["waiting"]],
    ]
    assert "3 of 5 slices" in shown
    assert "features of 1,200 texts" in shown


def test_a_terminal_shows_what_stands_before_anything_happens():
    shown = told([], terminal=True)
    assert "0 of 5 slices" in shown
    assert "features" not in shown


def test_a_constituent_nobody_announced_is_not_drawn():
    shown = told([Event("slice_done", "stranger", 0, 1, {"status": "trained"})], terminal=True)
    assert "stranger" not in shown
    assert "0 of 5 slices" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_the_display_is_closed_when_training_fails(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)

    def fail() -> None:
        with training_progress(SLICES, console) as report:
            report(STORY[1])
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    with training_progress(SLICES, console) as report:  # a second display would be refused while the first is live
        report(STORY[3])
