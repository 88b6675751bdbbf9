"""A readout that writes down each item it is asked, and may die on the way; for this process and for others."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.asking import ask_items
from fairsisa.bias.benchmark import Readout, by_item, score_row, scores_table
from fairsisa.bias.candidate import CLASSIFIER, Candidate
from fairsisa.bias.items import Item
from fairsisa.settings import ScoringSettings
from fairsisa.store import Store

CANDIDATE = Candidate("made", "ab" * 32, CLASSIFIER)


def made_items(count: int) -> tuple[Item, ...]:
    return tuple(
        Item(f"item-{number}", "word " * (number % 7 + 1), ("yes", "no"), f"cluster-{number % 5}", {"even": number % 2})
        for number in range(count)
    )


def ask(candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]) -> Answers:
    """Answer by the length of the context; the file named in the settings gets a line for each item."""
    journal = Path(settings["journal"])
    with journal.open("a", encoding="utf-8") as stream:
        stream.writelines(f"{item.item_id}\n" for item in items)
    if "die_after" in settings and len(journal.read_text(encoding="utf-8").splitlines()) >= settings["die_after"]:
        os.kill(os.getpid(), signal.SIGKILL)
    rows = [
        Answer(item.item_id, option, float(len(item.context) * (1 - option)), num_tokens=2, text=f"{option}é\n")
        for item in items
        for option in range(2)
    ]
    return answers_of(rows, np.arange(len(rows) * 3, dtype=np.float32).reshape(len(rows), 3))


def judge(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    return scores_table([score_row(item, value=float(rows["value"].max())) for item, rows in by_item(items, answers)])


def readout(journal: Path, **settings: Any) -> Readout:
    return Readout("made", CLASSIFIER, ask, judge, {"journal": str(journal), **settings}, chunk=8)


def main(place: Path, count: int, die_after: int) -> None:
    chosen = readout(place / "journal", die_after=die_after)
    ask_items(CANDIDATE, made_items(count), chosen, ScoringSettings(), store=Store(place / "store"))


if __name__ == "__main__":
    import bias_asking  # by its own name, which answers are named after

    bias_asking.main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
