from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fairsisa.errors import PartitionError
from fairsisa.sisa.partition import Partition, partition_examples, risk_shards
from fairsisa.tables import Examples

STRATEGIES = ("uniform", "stratified", "risk_aware")
GOLDEN = """
import json
import pandas as pd
from fairsisa.sisa.partition import partition_examples
from fairsisa.tables import Examples
ids = [f"e{i}" for i in range(12)]
frame = pd.DataFrame({"example_id": ids, "subject_id": [f"s{i // 2}" for i in range(12)], "split": "train",
                      "label": [i % 2 for i in range(12)], "text": "x", "risk": [i / 16 for i in range(12)],
                      "sensitive:sex": ["f", "f", "m", "m", None, None] * 2})
found = {}
for strategy, feature in (("uniform", None), ("stratified", "sex"), ("risk_aware", None)):
    dealt = partition_examples(Examples("tiny", frame, ("no", "yes")), num_shards=2, num_slices=2,
                               strategy=strategy, seed=7, sensitive_feature=feature)
    found[strategy] = [[list(dealt.slice_ids(shard, index)) for index in range(2)] for shard in range(2)]
print(json.dumps(found))
"""


def table(subjects: list[str], **columns: Any) -> Examples:
    count = len(subjects)
    fields = {
        "example_id": [f"e{i}" for i in range(count)],
        "subject_id": subjects,
        "label": [i % 2 for i in range(count)],
        "split": "train",
        "text": "x",
        "risk": [(i * 7 % 16) / 16 for i in range(count)],
        "sensitive:sex": [("f", "m", None)[i % 3] for i in range(count)],
    }
    return Examples("made up", pd.DataFrame(fields | columns), ("no", "yes"))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Examples, dict[str, Any]]:
    owners = draw(st.lists(st.integers(0, 12), min_size=6, max_size=40))
    splits = draw(st.lists(st.sampled_from(["train", "train", "calibration", "test"]), min_size=len(owners)))
    splits = ["train", "train", *splits[2 : len(owners)]]
    risks = draw(st.lists(st.integers(0, 16), min_size=len(owners), max_size=len(owners)))
    # A subject is in one split only, as the corpora promise.
    subjects = [f"{split[:2]}{owner}" for split, owner in zip(splits, owners, strict=True)]
    examples = table(subjects, split=splits, risk=[risk / 16 for risk in risks])
    strategy = draw(st.sampled_from(STRATEGIES))
    options = {
        "num_shards": draw(st.integers(1, 3)),
        "num_slices": draw(st.integers(1, 4)),
        "strategy": strategy,
        "seed": draw(st.integers(-3, 2**40)),
        "sensitive_feature": draw(st.sampled_from([None, "sex"])) if strategy == "stratified" else None,
    }
    return examples, options


def dealt(examples: Examples, options: dict[str, Any]) -> Partition:
    try:
        return partition_examples(examples, **options)
    except PartitionError:  # too few subjects, or no such cut by risk: tests of their own prove these
        assume(False)
        raise


def cells(partition: Partition) -> dict[str, tuple[int, int]]:
    return {
        name: (shard, index)
        for shard in range(partition.num_shards)
        for index in range(partition.num_slices)
        for name in partition.slice_ids(shard, index)
    }


def naive_algorithm_1(risks: list[Fraction], capacity: Fraction) -> list[list[Fraction]]:
    # Bourtoule et al. 2021, Algorithm 1, line by line; an empty first shard is dropped.
    shards: list[list[Fraction]] = [[]]
    for risk in sorted(risks):
        shards[-1].append(risk)
        if sum(shards[-1]) >= capacity:
            shards[-1].pop()
            shards.append([risk])
    return [shard for shard in shards if shard]


def smallest_capacity_shards(risks: list[Fraction], num_shards: int) -> list[list[Fraction]]:
    ordered = sorted(risks)
    sums = {sum(ordered[i:j]) for i in range(len(ordered)) for j in range(i + 1, len(ordered) + 1)}
    for capacity in sorted(sums | {Fraction(0)}):
        shards = naive_algorithm_1(risks, capacity + Fraction(1, 10**6))
        if len(shards) <= num_shards:
            return shards
    raise AssertionError("one shard always fits")


@given(cases())
@settings(deadline=None, max_examples=80)
def test_every_train_example_is_dealt_once_and_no_other(case):
    examples, options = case
    partition = dealt(examples, options)
    train = examples.frame.loc[examples.frame["split"] == "train", "example_id"]
    assert sorted(partition.example_ids) == sorted(train)
    sliced = [partition.slice_ids(k, r) for k in range(partition.num_shards) for r in range(partition.num_slices)]
    assert [name for ids in sliced for name in ids] == list(partition.example_ids)
    assert sum(partition.sizes) == len(train)


@given(cases())
@settings(deadline=None, max_examples=50)
def test_no_subject_is_split(case):
    examples, options = case
    partition = dealt(examples, options)
    owner = dict(zip(examples.frame["example_id"], examples.frame["subject_id"], strict=True))
    places = {(owner[name], cell) for name, cell in cells(partition).items()}
    assert len(places) == len({subject for subject, _ in places})
    assert [owner[name] for name in partition.example_ids] == list(partition.subject_ids)


@given(cases(), st.data())
@settings(deadline=None, max_examples=50)
def test_removal_moves_no_other(case, data):
    partition = dealt(*case)
    gone = data.draw(st.sets(st.sampled_from(partition.example_ids)))
    left = partition.without([*gone, "an id it does not hold"])
    before = cells(partition)
    assert cells(left) == {name: cell for name, cell in before.items() if name not in gone}
    assert list(left.example_ids) == [name for name in partition.example_ids if name not in gone]
    assert (left.num_shards, left.num_slices) == (partition.num_shards, partition.num_slices)
    assert left.without(gone) == left


@given(cases(), st.data())
@settings(deadline=None, max_examples=50)
def test_uniform_partition_of_what_is_left_is_what_is_left_of_the_partition(case, data):
    examples, options = case
    options |= {"strategy": "uniform", "sensitive_feature": None}
    partition = dealt(examples, options)
    gone = data.draw(st.sets(st.sampled_from(partition.example_ids)))
    kept = examples.frame[~examples.frame["example_id"].isin(gone)]
    assume(kept.loc[kept["split"] == "train", "label"].nunique() == 2)
    rest = Examples(examples.name, kept, examples.classes)
    assert dealt(rest, options) == partition.without(gone)


@given(cases(), st.randoms())
@settings(deadline=None, max_examples=50)
def test_order_of_rows_does_not_matter(case, random):
    examples, options = case
    rows = list(range(len(examples)))
    random.shuffle(rows)
    shuffled = Examples(examples.name, examples.frame.iloc[rows].reset_index(drop=True), examples.classes)
    assert dealt(shuffled, options) == dealt(examples, options)


@given(cases(), st.randoms())
@settings(deadline=None, max_examples=50)
def test_frame_brings_the_partition_back(case, random):
    partition = dealt(*case)
    frame = partition.frame()
    rows = list(range(len(frame)))
    random.shuffle(rows)
    header = {name: getattr(partition, name) for name in ("num_shards", "num_slices", "strategy", "seed")}
    assert Partition.from_frame(frame.iloc[rows], **header) == partition
    assert Partition.from_frame(frame.iloc[:0], **header) == partition.without(partition.example_ids)


def test_parquet_brings_the_partition_back(tmp_path):
    partition = partition_examples(table([f"s{i}" for i in range(30)]), num_shards=3, num_slices=2)
    partition.frame().to_parquet(tmp_path / "partition.parquet")
    frame = pd.read_parquet(tmp_path / "partition.parquet")
    assert Partition.from_frame(frame, num_shards=3, num_slices=2, strategy="uniform", seed=0) == partition


def test_slices_are_in_canonical_order():
    partition = partition_examples(table([f"s{i}" for i in range(50)]), num_shards=2, num_slices=3)
    for shard in range(2):
        for index in range(3):
            ids = partition.slice_ids(shard, index)
            assert list(ids) == sorted(ids)
            held = (partition.shard == shard) & (partition.slice == index)
            assert tuple(np.asarray(partition.example_ids)[held]) == ids


@pytest.mark.parametrize("cell", [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_slices_that_do_not_exist_are_an_error(cell):
    partition = partition_examples(table([f"s{i}" for i in range(50)]), num_shards=2, num_slices=3)
    with pytest.raises(PartitionError, match="Expected shard < 2 and slice < 3, got shard"):
        partition.slice_ids(*cell)


def test_uniform_places_depend_on_the_subject_alone():
    few = partition_examples(table([f"s{i}" for i in range(40)]), num_shards=3, num_slices=2, seed=5)
    many = partition_examples(table([f"s{i}" for i in range(400)]), num_shards=3, num_slices=2, seed=5)
    assert cells(few).items() <= cells(many).items()


def test_uniform_places_are_even_and_independent():
    partition = partition_examples(table([f"s{i}" for i in range(20_000)]), num_shards=4, num_slices=5)
    expected = 1000.0
    chi_squared = ((np.asarray(partition.sizes) - expected) ** 2 / expected).sum()
    assert chi_squared < 43.8  # the 0.999 quantile for 19 degrees of freedom
    other = partition_examples(table([f"s{i}" for i in range(20_000)]), num_shards=4, num_slices=5, seed=1)
    before = cells(partition)
    together = [before[name] == cell for name, cell in cells(other).items()]
    assert abs(np.mean(together) - 1 / 20) < 0.01


strata = st.tuples(st.integers(0, 1), st.sampled_from(["f", "m", None]))


@given(st.lists(strata, min_size=8, max_size=60), st.integers())
@settings(deadline=None, max_examples=50)
def test_strata_are_even_over_shards_and_slices(pairs, seed):
    labels, groups = zip(*pairs, strict=True)
    assume(len(set(labels)) == 2)
    examples = table([f"s{i}" for i in range(len(pairs))], label=list(labels), **{"sensitive:sex": list(groups)})
    partition = partition_examples(
        examples, num_shards=3, num_slices=2, strategy="stratified", seed=seed, sensitive_feature="sex"
    )
    place = cells(partition)
    for stratum in set(pairs):
        members = [place[f"e{i}"] for i, pair in enumerate(pairs) if pair == stratum]
        shards = [sum(shard == k for shard, _ in members) for k in range(3)]
        assert max(shards) - min(shards) <= 1
        slices = [members.count((shard, index)) for shard in range(3) for index in range(2)]
        assert max(slices) - min(slices) <= 1
    assert max(partition.sizes) - min(partition.sizes) <= 1


def test_without_a_sensitive_feature_the_label_is_the_stratum():
    partition = partition_examples(
        table([f"s{i}" for i in range(60)]), num_shards=3, num_slices=2, strategy="stratified"
    )
    labels = Counter((shard, int(name[1:]) % 2) for name, (shard, _) in cells(partition).items())
    assert set(labels.values()) == {10}


def test_a_subject_belongs_to_its_most_frequent_stratum():
    # Subjects 0..9 have labels 1, 1, 0 and 10..19 have 0, 0, 1: a majority makes the stratum, whatever comes first.
    subjects = [f"s{i}" for i in range(20) for _ in range(3)]
    labels = [label for i in range(20) for label in ((1, 1, 0) if i < 10 else (0, 1, 0))]
    partition = partition_examples(table(subjects, label=labels), num_shards=5, num_slices=1, strategy="stratified")
    owner = dict(zip(partition.example_ids, partition.subject_ids, strict=True))
    places = {owner[name]: shard for name, (shard, _) in cells(partition).items()}
    for kind in (range(10), range(10, 20)):
        assert set(Counter(places[f"s{i}"] for i in kind).values()) == {2}


risks_in_sixteenths = st.lists(st.integers(0, 16), min_size=1, max_size=14)


@given(risks_in_sixteenths, st.integers(1, 5))
@settings(deadline=None, max_examples=200)
def test_shards_by_risk_are_those_of_algorithm_1(sixteenths, num_shards):
    risks = sorted(Fraction(n, 16) for n in sixteenths)
    expected = smallest_capacity_shards(risks, num_shards)
    values = np.array([float(risk) for risk in risks])
    if len(expected) < num_shards:
        with pytest.raises(PartitionError, match=f"got {len(expected)}: .* ask for num_shards={len(expected)}"):
            risk_shards(values, num_shards)
        return
    found = risk_shards(values, num_shards)
    assert np.bincount(found).tolist() == [len(shard) for shard in expected]
    assert (np.diff(found) >= 0).all()


@given(st.lists(st.floats(0.001, 1.0), min_size=4, max_size=9, unique=True), st.integers(2, 4))
@settings(deadline=None, max_examples=50)
def test_no_cut_by_risk_has_a_smaller_largest_shard(values, num_shards):
    risks = np.sort(np.asarray(values))
    try:
        found = risk_shards(risks, num_shards)
    except PartitionError:
        assume(False)
    largest = max(risks[found == shard].sum() for shard in range(num_shards))
    cuts = combinations(range(1, len(risks)), num_shards - 1)
    best = min(max(part.sum() for part in np.split(risks, cut)) for cut in cuts)
    assert largest == pytest.approx(best, abs=1e-8)


@given(st.lists(st.integers(0, 64), min_size=12, max_size=60), st.integers(1, 4), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_likelier_deletions_come_in_later_slices(sixty_fourths, num_slices, seed):
    risks = [n / 64 for n in sixty_fourths]
    options = {"num_shards": 2, "num_slices": num_slices, "strategy": "risk_aware", "seed": seed}
    partition = dealt(table([f"s{i}" for i in range(len(risks))], risk=risks), options)
    for shard in range(2):
        slices = [[risks[int(name[1:])] for name in partition.slice_ids(shard, index)] for index in range(num_slices)]
        flat = [(min(part), max(part)) for part in slices if part]
        assert all(before[1] <= after[0] for before, after in pairwise(flat))
        counts = [len(part) for part in slices]
        assert max(counts) - min(counts) <= 1


def test_risk_of_a_subject_is_that_of_any_request():
    # s0 has 1 - (1/2)(1/2) = 3/4: more than s2, less than s1, though its examples' risks add up to 1.
    examples = table(["s0", "s1", "s0", "s2"], risk=[0.5, 0.8, 0.5, 0.7], label=[0, 1, 1, 0])
    partition = partition_examples(examples, num_shards=1, num_slices=3, strategy="risk_aware")
    assert [partition.slice_ids(0, index) for index in range(3)] == [("e3",), ("e0", "e2"), ("e1",)]


def test_order_of_rows_does_not_even_round_differently():
    risks = [0.22, 0.42, 0.03]  # the product of what remains depends, in its last bit, on the order of factors
    forth = table(["s0"] * 3 + ["s1"] * 3, risk=risks + risks[::-1])
    back = Examples(forth.name, forth.frame[::-1].reset_index(drop=True), forth.classes)
    options = {"num_shards": 1, "num_slices": 2, "strategy": "risk_aware"}
    assert partition_examples(forth, **options) == partition_examples(back, **options)


def test_equal_risks_are_dealt_by_hash_not_by_name():
    examples = table([f"s{i:03}" for i in range(200)], example_id=[f"e{i:03}" for i in range(200)], risk=0.25)
    partition = partition_examples(examples, num_shards=2, num_slices=1, strategy="risk_aware")
    first = {int(subject[1:]) < 100 for subject in partition.subject_ids[:100]}
    assert first == {True, False}
    assert partition.sizes == (100, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_shards": 0}, "num_shards of at least 1, got 0"),
        ({"num_slices": 0}, "num_slices of at least 1, got 0"),
        ({"num_shards": 13}, "got 12 subjects for 13 shards"),
        ({"strategy": "random"}, "strategy of uniform, stratified, risk_aware, got 'random'"),
        ({"sensitive_feature": "sex"}, "'uniform' reads no sensitive feature, got 'sex'"),
        ({"num_shards": 12}, r"Shard \d+ of 12 got none of 12 subjects: ask for fewer shards"),
    ],
)
def test_what_cannot_be_dealt_is_refused(options, message):
    with pytest.raises(PartitionError, match=message):
        partition_examples(table([f"s{i}" for i in range(12)]), **({"num_shards": 2, "num_slices": 2} | options))


def test_risk_aware_needs_risks():
    examples = table([f"s{i}" for i in range(12)])
    without = Examples(examples.name, examples.frame.drop(columns="risk"), examples.classes)
    with pytest.raises(PartitionError, match=r"reads the column 'risk'.*add it, or choose another strategy"):
        partition_examples(without, num_shards=2, num_slices=2, strategy="risk_aware")


def test_risks_that_allow_no_such_cut_name_one_that_works():
    examples = table([f"s{i}" for i in range(100)], risk=0.125)
    with pytest.raises(PartitionError, match=r"Expected 11 shards .* got 10.*ask for num_shards=10"):
        partition_examples(examples, num_shards=11, num_slices=1, strategy="risk_aware")
    partition = partition_examples(examples, num_shards=10, num_slices=1, strategy="risk_aware")
    assert set(partition.sizes) == {10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns=["slice"]), "example_id, subject_id, shard, slice; slice not found"),
        (lambda frame: frame.assign(shard=frame["shard"] + 1), "Expected shard < 2, got 2 for example 'e"),
        (lambda frame: frame.assign(slice=-1), "Expected slice < 2, got -1 for example 'e"),
        (lambda frame: pd.concat([frame, frame[:1]]), "Example 'e.*' is in the partition more than once"),
        (lambda frame: frame.assign(subject_id="me"), "Subject 'me' is in more than one shard"),
    ],
)
def test_frames_that_are_no_partition_are_refused(change, message):
    frame = partition_examples(table([f"s{i}" for i in range(30)]), num_shards=2, num_slices=2).frame()
    with pytest.raises(PartitionError, match=message):
        Partition.from_frame(change(frame), num_shards=2, num_slices=2, strategy="uniform", seed=0)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_places_are_the_same_in_every_process(hash_seed):
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", GOLDEN], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {  # worked out from the definitions, apart from the package
        "uniform": [[[], ["e0", "e1", "e8", "e9"]], [["e10", "e11"], ["e2", "e3", "e4", "e5", "e6", "e7"]]],
        "stratified": [[["e0", "e1", "e4", "e5"], ["e2", "e3"]], [["e10", "e11", "e6", "e7"], ["e8", "e9"]]],
        "risk_aware": [[["e0", "e1", "e2", "e3"], ["e4", "e5", "e6", "e7"]], [["e8", "e9"], ["e10", "e11"]]],
    }
