from __future__ import annotations

import numpy as np
import pytest

from fairsisa.errors import ConfigError
from fairsisa.sisa import formulas
from fairsisa.sisa.advice import Needs, advise

SOME = Needs(
    num_examples=10_000,
    requests_per_day=5.0,
    examples_per_second=100.0,
    bytes_per_checkpoint=1_000,
    max_delay_days=3.0,
)


def test_advice_is_sorted_and_the_first_is_recommended():
    advice = advise(SOME, shards=(1, 5, 10), slices=(1, 4), windows=(1, 8, 32))
    table = advice.table
    assert len(table) == 18
    assert set(table["method"]) == {"closed form"}
    assert table["feasible"].tolist() == sorted(table["feasible"], reverse=True)
    chosen = table[table["feasible"]]
    assert chosen["core_seconds_per_day"].is_monotonic_increasing
    assert advice.recommended["core_seconds_per_day"].tolist() == [chosen["core_seconds_per_day"].min()]
    assert (table[table["window"] == 32]["reason"].str.contains("days of delay, at most 3 allowed")).all()


def test_advice_gives_the_numbers_of_the_formulas():
    row = advise(SOME, shards=(4,), slices=(5,), windows=(8,)).table.iloc[0]
    closed = formulas.combined_batch(num_examples=10_000, num_shards=4, num_slices=5, num_requests=8, max_epochs=3.0)
    assert row["example_epochs_per_request"] == pytest.approx(closed / 8)
    assert row["core_seconds_per_day"] == pytest.approx(closed / 8 * 5 / 100)
    assert row["storage_bytes"] == 20_000
    assert row["worst_core_seconds"] == pytest.approx(300.0)
    assert row["delay_days"] == pytest.approx(7 / 5 + 300 / 86_400)


def test_more_cores_shorten_the_delay_alone():
    one, two = (
        advise(
            Needs(10_000, 5.0, 100.0, 1_000, 3.0, num_cores=cores), shards=(4,), slices=(5,), windows=(8,)
        ).table.iloc[0]
        for cores in (1, 2)
    )
    assert two["worst_core_seconds"] == one["worst_core_seconds"]
    assert one["delay_days"] - two["delay_days"] == pytest.approx(150 / 86_400)


def test_little_room_costs_more_and_too_little_is_said():
    all_kept, some, none = (
        advise(
            Needs(10_000, 5.0, 100.0, 1_000, 3.0, max_bytes=room),
            shards=(4,),
            slices=(5,),
            windows=(1,),
            num_trials=4000,
        ).table.iloc[0]
        for room in (None, 12_000, 3_999)
    )
    assert (some["num_checkpoints"], none["num_checkpoints"]) == (12, 4)
    assert (all_kept["method"], some["method"]) == ("closed form", "Monte Carlo")
    assert all_kept["core_seconds_per_day"] < some["core_seconds_per_day"] < none["core_seconds_per_day"]
    assert some["feasible"]
    assert none["reason"] == "needs 4,000 bytes of checkpoints, at most 3,999 allowed"


def test_too_little_computing_is_said():
    slow = Needs(10_000, 5.0, 0.5, 1_000, 3.0)
    advice = advise(slow, shards=(2,), slices=(1,), windows=(1,))
    assert advice.table.loc[0, "reason"] == "needs 150,000 core-seconds a day, at most 86,400 allowed"
    assert advice.recommended.empty


def test_risks_are_advised_on_by_trials():
    risks = np.linspace(0, 1, 10_000) ** 8
    rows = {
        strategy: advise(SOME, shards=(6,), slices=(8,), windows=(10,), risks=risks, strategy=strategy).table.iloc[0]
        for strategy in ("uniform", "risk_aware")
    }
    assert {row["method"] for row in rows.values()} == {"Monte Carlo"}
    assert rows["risk_aware"]["core_seconds_per_day"] < rows["uniform"]["core_seconds_per_day"]
    assert rows["risk_aware"]["worst_core_seconds"] == pytest.approx(rows["uniform"]["worst_core_seconds"], rel=1e-3)


def test_a_large_window_is_advised_on_by_trials():
    few = Needs(100, 5.0, 100.0, 1_000, 30.0)
    assert advise(few, shards=(2,), slices=(2,), windows=(50,)).table.loc[0, "method"] == "Monte Carlo"


def test_needs_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="Expected requests_per_day to be greater than 0"):
        Needs(10, 0.0, 1.0, 1, 1.0)
