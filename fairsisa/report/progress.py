"""The progress of training on a terminal: shards by slices, as they are trained."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fairsisa.execution import Event, Report

MARKS = {"waiting": ("·", "dim"), "running": ("▶", "yellow"), "trained": ("■", "green"), "reused": ("■", "cyan")}
MARKS |= {"empty": ("□", "dim"), "dropped": ("▪", "dim"), "compressed": ("■", "green")}


@contextmanager
def training_progress(num_slices: Mapping[str, int], console: Console) -> Iterator[Report]:
    """Give an event handler that keeps a table of constituents and slices up to date; plain lines where no one watches.

    `num_slices` maps each constituent to its number of slices.
    """
    board = _Board(num_slices)
    if not console.is_terminal:

        def tell(event: Event) -> None:
            board.take(event)
            if line := _line(event, board):
                console.print(line, highlight=False)

        yield tell
        return
    with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=False):
        yield board.take


class _Board:
    """What is known of each slice; a handle on the display."""

    def __init__(self, num_slices: Mapping[str, int]) -> None:
        self.slices = {name: ["waiting"] * count for name, count in num_slices.items()}
        self.latest: dict[str, Event] = {}
        self.predicted: dict[str, int] = dict.fromkeys(num_slices, 0)
        self.features = 0
        self.started = time.monotonic()

    def take(self, event: Event) -> None:
        if event.kind == "features_done":
            self.features += int(event.values["examples"])
        elif event.kind == "predicted":
            if event.constituent in self.predicted:
                self.predicted[event.constituent] += int(event.values["examples"])
        elif event.kind == "model_started":  # a student or a copy, which no one announced
            self.slices[event.constituent] = ["running"]
            self.predicted.setdefault(event.constituent, 0)
        elif event.constituent in self.slices:
            status = {"slice_started": "running", "metrics": "running"}.get(event.kind) or str(event.values["status"])
            self.slices[event.constituent][event.slice] = status
            if event.kind == "metrics":
                self.latest[event.constituent] = event

    def counts(self) -> tuple[int, int]:
        every = [status for statuses in self.slices.values() for status in statuses]
        return sum(status not in ("waiting", "running") for status in every), len(every)

    def render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for column in ("constituent", "slices", "loss", "step", "predicted"):
            table.add_column(
                column, header_style="bold", justify="left" if column in ("constituent", "slices") else "right"
            )
        for name, statuses in self.slices.items():
            cells = Text()
            for status in statuses:
                mark, style = MARKS[status]
                cells.append(f"{mark} ", style=style)
            event = self.latest.get(name)
            loss = f"{float(event.values['train_loss']):.3f}" if event and "train_loss" in event.values else ""
            table.add_row(name, cells, loss, str(event.step) if event else "", str(self.predicted[name] or ""))
        done, total = self.counts()
        seconds = time.monotonic() - self.started
        note = f"{done} of {total} slices · {seconds:.0f} s"
        note += f" · features of {self.features:,} texts" if self.features else ""
        legend = Text("■ trained  ■ found in the store  ▶ training  · waiting  □ empty  ▪ dropped", style="dim")
        return Group(table, Text(note), legend)


def _line(event: Event, board: _Board) -> str:
    done, total = board.counts()
    if event.kind == "slice_done":
        steps = f"{event.step} steps" if event.step else "no steps"
        return f"[{done}/{total}] {event.constituent} slice {event.slice}: {event.values['status']} ({steps})"
    if event.kind == "model_done":
        steps = f" ({event.step} steps)" if event.step else ""
        return f"{event.constituent}: {event.values['status']}{steps}"
    if event.kind == "features_done":
        return f"features of {event.values['examples']} texts"
    if event.kind == "predicted":
        return f"{event.constituent}: predicted {event.values['examples']} examples"
    return ""
