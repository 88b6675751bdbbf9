"""What changed from one model's answers to another's: flips, all-flips and top margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairsisa.bias.benchmark import SCORED
from fairsisa.errors import DataError

CORRECT_TO_WRONG, WRONG_TO_CORRECT = "correct_to_wrong", "wrong_to_correct"
WRONG_TO_WRONG, UNCHANGED = "wrong_to_wrong", "unchanged"
BASE_ONLY, OTHER_ONLY, NEITHER = "scored_in_base_only", "scored_in_other_only", "scored_in_neither"
FLIPS = (CORRECT_TO_WRONG, WRONG_TO_CORRECT)
CHANGES = (*FLIPS, WRONG_TO_WRONG)
LEFT_OUT = (BASE_ONLY, OTHER_ONLY, NEITHER)
NAMED = 3


@dataclass(frozen=True)
class Behaviour:
    """How many items changed, of the `num_items` scored under both models (Dutta et al. 2024).

    `wrong_to_wrong` counts other wrong answers. Items that one or both models were not scored on are no part of
    `num_items`. The margins are the base's mean top margins over items whose answer did and did not change, NaN where
    there is none.
    """

    num_items: int
    correct_to_wrong: int
    wrong_to_correct: int
    wrong_to_wrong: int
    scored_in_base_only: int
    scored_in_other_only: int
    scored_in_neither: int
    margin_changed: float
    margin_unchanged: float

    @property
    def flips(self) -> float:
        """The share of items whose correctness changed, in percent; NaN without items."""
        return self._percent(self.correct_to_wrong + self.wrong_to_correct)

    @property
    def all_flips(self) -> float:
        """The share of items whose answer changed, in percent; NaN without items."""
        return self._percent(self.correct_to_wrong + self.wrong_to_correct + self.wrong_to_wrong)

    @property
    def net_change(self) -> float:
        """The change of accuracy, other less base, in percentage points; its size is at most `flips`."""
        return self._percent(self.wrong_to_correct - self.correct_to_wrong)

    def _percent(self, count: int) -> float:
        return 100 * count / self.num_items if self.num_items else float("nan")


def behaviour(base: pd.DataFrame, other: pd.DataFrame, *, column: str = "correct") -> Behaviour:
    """Return how two models' scores tables on the same items differ.

    `column` is the 0/1 column whose changes are flips: `correct`, or `outcome`, where 1 stands in for correct.

    Raises:
        DataError: as `changes`.
    """
    table = changes(base, other, column=column)
    counts = table["change"].value_counts()
    margins = pd.to_numeric(table["base_margin"])
    changed, unchanged = table["change"].isin(CHANGES), table["change"] == UNCHANGED
    return Behaviour(
        num_items=int((changed | unchanged).sum()),
        **{name: int(counts.get(name, 0)) for name in (*CHANGES, *LEFT_OUT)},
        margin_changed=float(margins[changed].mean()),
        margin_unchanged=float(margins[unchanged].mean()),
    )


def changes(base: pd.DataFrame, other: pd.DataFrame, *, column: str = "correct") -> pd.DataFrame:
    """Return what changed for each item, in the order of the base's table.

    The columns are `item_id`, `cluster`, `change` (one of `CHANGES` or `LEFT_OUT`, or "unchanged"), `base_answer`,
    `other_answer` and `base_margin`. An item counts as scored where its state says so and `column` is a number. Two
    right answers count as one, however they are written; of an `outcome`, every other answer is a change.

    Raises:
        DataError: when the tables are of different items, naming some; an id occurs twice; or a score is not 0 or 1.
    """
    _require_same_items(base, other)
    aligned = other.set_index("item_id").loc[base["item_id"]].reset_index()
    before, after = _marks(base, column), _marks(aligned, column)
    there, kept = ~np.isnan(before), ~np.isnan(after)
    same = base["answer"].astype(str).to_numpy() == aligned["answer"].astype(str).to_numpy()
    other_answer = ~same if column == "outcome" else (before == 0) & ~same
    kinds = np.select(
        [there & ~kept, ~there & kept, ~there, before > after, before < after, other_answer],
        [BASE_ONLY, OTHER_ONLY, NEITHER, CORRECT_TO_WRONG, WRONG_TO_CORRECT, WRONG_TO_WRONG],
        default=UNCHANGED,
    )
    return pd.DataFrame(
        {
            "item_id": base["item_id"].to_numpy(),
            "cluster": base["cluster"].to_numpy(),
            "change": kinds,
            "base_answer": base["answer"].to_numpy(),
            "other_answer": aligned["answer"].to_numpy(),
            "base_margin": base["margin"].to_numpy(dtype=np.float64),
        }
    )


def _marks(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return 0, 1 or, where an item was not scored, NaN."""
    marks = pd.to_numeric(table[column]).to_numpy(dtype=np.float64, copy=True)
    marks[(table["state"] != SCORED).to_numpy()] = np.nan
    _refuse(
        f"a score other than 0 and 1 in {column!r}",
        table["item_id"][~np.isnan(marks) & ~np.isin(marks, (0, 1))].tolist(),
    )
    return marks


def _require_same_items(base: pd.DataFrame, other: pd.DataFrame) -> None:
    for table in (base, other):
        _refuse("an item twice", table["item_id"][table["item_id"].duplicated()].tolist())
    ours, theirs = set(base["item_id"]), set(other["item_id"])
    _refuse("items of the base alone", sorted(ours - theirs))
    _refuse("items of the other model alone", sorted(theirs - ours))


def _refuse(what: str, ids: Sequence[str]) -> None:
    if ids:
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        named = ", ".join(map(str, ids[:NAMED]))
        raise DataError(f"Expected two models' scores on the same items, got {what}: {named}{more}. Ask both anew.")
