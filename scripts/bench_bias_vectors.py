"""Measure SEAT against a faithful one-sentence-at-a-time reference, on the same model in the same run.

`FAIRSISA_DATA=... python scripts/bench_bias_vectors.py` prints a Markdown table: encoding the sentences of some tests
one at a time with autograd on, each test's own, and a permutation test in a loop of shuffles, as bias-bench does both;
against unique sentences in batches and permutations as matrix products. The model is the embedded MiniLM encoder.
`--tests` names other tests of SEAT, `--permutations` shortens the loop.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairsisa.bias.association import NUM_PERMUTATIONS, permutation_p_value
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import seat
from fairsisa.bias.candidate import ENCODER, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.vectors import ask_vectors
from fairsisa.models.base import find_base, load_encoder, load_tokenizer
from fairsisa.settings import ModelSettings, ScoringSettings

Sets = dict[str, list[np.ndarray]]


def minilm() -> Candidate:
    """Return the embedded encoder as a candidate."""
    settings = ModelSettings(base="minilm")
    base = find_base(settings)
    return Candidate("minilm", "0" * 64, ENCODER, load_encoder(base, settings, 0).eval(), load_tokenizer(base))


def one_at_a_time(candidate: Candidate, items: Sequence[Item]) -> dict[str, Sets]:
    """Encode each sentence of each test alone: the mean over its tokens, of length one."""
    sets: dict[str, Sets] = {}
    for item in items:
        inputs = candidate.tokenizer(item.options[0], return_tensors="pt")
        hidden = candidate.network(**inputs).last_hidden_state
        vector = hidden.mean(dim=1).detach().view(-1).numpy()
        test = sets.setdefault(str(item.labels["test"]), {role: [] for role in "XYAB"})
        test[str(item.labels["role"])].append(vector / np.linalg.norm(vector))
    return sets


def shuffled_p_value(values: dict[str, list[float]], permutations: int) -> float:
    """Shuffle the values of both sets of targets in place and count the sums that reach the observed one."""
    rng = np.random.default_rng(0)
    both, size = np.array(values["X"] + values["Y"]), len(values["X"])
    observed, reached = sum(values["X"]), 1
    for _ in range(permutations - 1):
        rng.shuffle(both)
        reached += both[:size].sum() >= observed
    return float(reached / permutations)


def plain_values(sets: Sets) -> tuple[dict[str, list[float]], float]:
    """Return s of the targets and the effect size of one test, pair by pair."""
    values = {
        side: [float(np.mean([a @ w for a in sets["A"]]) - np.mean([b @ w for b in sets["B"]])) for w in sets[side]]
        for side in "XY"
    }
    difference = np.mean(values["X"]) - np.mean(values["Y"])
    return values, float(difference / np.std(values["X"] + values["Y"], ddof=1))


def timed(work: Any) -> tuple[Any, float]:
    """Return what some work gives and the processor seconds it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def measure(tests: Sequence[str], permutations: int) -> None:
    """Print what encoding, effect sizes and one permutation test cost, theirs and ours."""
    torch.set_num_threads(1)
    files = Files(Path(os.environ["FAIRSISA_DATA"]) if "FAIRSISA_DATA" in os.environ else None, Path(".cache"))
    items = seat.load_tests(files, {test: seat.SENTENCE_TESTS[test] for test in tests}).items
    candidate = minilm()
    answers, ours = timed(lambda: ask_vectors(candidate, items, ScoringSettings(), {}))
    alone, theirs = timed(lambda: one_at_a_time(candidate, items))
    sentences = len({item.options for item in items})
    print(
        f"{len(items):,} sentences in {len(tests)} tests, {sentences:,} of them unique; processor seconds, 1 thread\n"
    )
    print("| work | one at a time | fairsisa | ratio | largest difference |\n|---|---|---|---|---|")
    scores, judged = timed(lambda: seat.judge(items, answers))
    plain, looped = timed(lambda: {test: plain_values(sets) for test, sets in alone.items()})
    effects = {}
    for test in tests:
        rows = scores[scores["label:test"] == test]
        effects[test] = float(seat.effect_size_of({n: rows[n].to_numpy() for n in rows}, np.ones((len(rows), 1)))[0])
    vectors = np.abs(np.stack([v for sets in alone.values() for r in "XYAB" for v in sets[r]]) - answers.vectors).max()
    show("vectors", theirs, ours, vectors)
    show("effect sizes", looped, judged, max(abs(effects[test] - plain[test][1]) for test in tests))
    values = plain[tests[0]][0]
    both, in_first = np.array(values["X"] + values["Y"]), np.arange(len(values["X"] + values["Y"])) < len(values["X"])
    slow, loop = timed(lambda: shuffled_p_value(values, permutations))
    fast, masks = timed(lambda: permutation_p_value(both, in_first, seed=0, num_permutations=permutations))
    show(f"{permutations:,} permutations of {tests[0]}", loop, masks, abs(slow - fast))
    error = np.sqrt(max(slow * (1.0 - slow), 1.0 / permutations) / permutations)
    print(f"\np = {slow:.5f} and {fast:.5f}, each with a standard error of {error:.5f}")


def show(work: str, theirs: float, ours: float, difference: float) -> None:
    """Print a row of the table."""
    print(f"| {work} | {theirs:.2f} | {ours:.3f} | {theirs / ours:.1f} | {difference:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", nargs="+", default=[*seat.GENDER], choices=[*seat.SENTENCE_TESTS], metavar="TEST")
    parser.add_argument("--permutations", type=int, default=NUM_PERMUTATIONS)
    asked = parser.parse_args()
    measure(asked.tests, asked.permutations)


if __name__ == "__main__":
    main()
