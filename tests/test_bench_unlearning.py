from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains import PERCEPTRON, TINY_TEXT, run_of, sampled
from fairsisa.data.synthetic_samples import load_synthetic_text
from fairsisa.settings import PartitionSettings
from fairsisa.tables import TRAIN

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_unlearning.py"
spec = importlib.util.spec_from_file_location("bench_unlearning", SCRIPT)
assert spec is not None
assert spec.loader is not None
bench_unlearning = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = bench_unlearning  # dataclasses look their module up
spec.loader.exec_module(bench_unlearning)

TINY = replace(bench_unlearning.QUICK, tabular=300, requests=10, grid=((2,), (2,)), headline=(3, 2, 1), ledger=20)
TINY = replace(TINY, plan=(1_000, 10), posts=None)


def rows_of(lines, width):
    """Return the rows of all tables of so many columns, headers included."""
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if len(row) == width and set("".join(row)) != {"-"}]


def told(name, folder, sizes=TINY):
    return list(bench_unlearning.TABLES[name](bench_unlearning.Bench(sizes, folder, None)))


def test_what_is_trained_is_what_was_planned(tmp_path):
    _, row = rows_of(told("A", tmp_path), 13)
    assert row[:2] == ["2", "2"]
    assert row[3] == "2 of 2"
    assert not list(tmp_path.iterdir())


def test_a_plan_that_is_off_by_one_meets_no_goal(tmp_path, monkeypatch):
    right = bench_unlearning.planned
    monkeypatch.setattr(bench_unlearning, "planned", lambda run, ids: right(run, ids) + 1)
    _, row = rows_of(told("A", tmp_path), 13)
    assert row[3] == "0 of 2"
    assert row[-1] == "not met"


@pytest.mark.slow
def test_the_clock_is_read_for_requests_batches_start_up_and_the_verb(tmp_path, monkeypatch):
    examples = load_synthetic_text(num_examples=150, repeat_share=0.0)
    monkeypatch.setattr(bench_unlearning, "posts", lambda bench: examples)
    monkeypatch.setattr(bench_unlearning, "minilm", lambda bench: TINY_TEXT)
    lines = told("B", tmp_path)
    rows = rows_of(lines, 14)[1:]
    assert [row[0] for row in rows[:5]] == [f"1 request, slice {place}" for place in range(4)] + ["8 requests"]
    assert all(row[1] == row[2] and row[-1] == "equal" for row in rows[:5])
    shown = [float(row[2]) for row in rows[:4]]
    assert float(rows[5][2]) == pytest.approx(np.mean(shown), rel=1e-4)
    assert all(row[-1] in ("met", "not met") for row in rows[5:])
    steps = [name for name, _ in rows_of(lines, 2)]
    assert set(bench_unlearning.STEPS.values()) < set(steps)


def test_the_headline_is_simulated_planned_and_trained(tmp_path):
    lines = told("C", tmp_path)
    simulated, (_, planned, trained) = rows_of(lines, 4)[1:], rows_of(lines, 5)
    assert [row[0].split(":")[0] for row in simulated] == ["S=1", "S=3", "S=5", "S=10"]
    assert float(simulated[1][1]) == pytest.approx(float(simulated[1][2].split()[0]), rel=0.05)
    assert float(planned[1].split()[0]) == pytest.approx(float(simulated[1][1]), rel=0.2)
    assert trained[-1] == "equal"


def test_planning_and_the_ledger_are_measured(tmp_path):
    assert [row[0] for row in rows_of(told("D", tmp_path), 4)[1:]] == ["seconds", "peak memory, GB"]
    found = rows_of(told("E", tmp_path), 4)[1:]
    assert len(found) == 5
    assert found[2][-1] == "met"


@pytest.fixture(scope="module")
def partition():
    return sampled(run_of(PERCEPTRON, partition=PartitionSettings(num_shards=2, num_slices=3)), 100)[1]


@given(count=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_examples_are_drawn_once_each_and_from_every_slice_in_proportion(partition, count, seed):
    drawn = bench_unlearning.draw_evenly(partition, count, np.random.default_rng(seed)).tolist()
    places = dict(zip(partition.example_ids, partition.slice.tolist(), strict=True))
    assert len(set(drawn)) == count
    for place in range(3):
        share = count * np.mean(partition.slice == place)
        assert abs(sum(places[example] == place for example in drawn) - share) < 1 + 1e-9


def test_a_part_of_a_corpus_keeps_the_shares_of_its_splits():
    examples = load_synthetic_text(num_examples=400, repeat_share=0.0)
    part = bench_unlearning.first_of(examples, 50)
    before, after = (one.frame["split"].value_counts() for one in (examples, part))
    assert after[TRAIN] == 50
    assert (after / before).to_numpy() == pytest.approx(50 / before[TRAIN], abs=0.02)


def test_the_command_line_names_its_tables(capsys):
    with pytest.raises(SystemExit):
        bench_unlearning.main(["--only", "A,Z"])
    assert "A,B,C,D,E" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="FAIRSISA_DATA"):
        bench_unlearning.posts(bench_unlearning.Bench(TINY, Path("nowhere"), None))
