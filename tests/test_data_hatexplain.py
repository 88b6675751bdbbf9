from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairsisa.data.hatexplain import (
    CODED_FAMILIES,
    FAMILIES,
    MENTIONED,
    NOT_MENTIONED,
    Post,
    load_hatexplain,
    mentioned_groups,
    parse_original,
    parse_reassembled,
    posts_to_examples,
)
from fairsisa.errors import ChecksumError, DataError
from fairsisa.tables import Examples

# Shares, P(toxic | mentioned), P(toxic | not mentioned), number of normal posts that mention: our published test cells.
CELLS = {
    "religion_any": (0.262, 0.839, 0.506, 81),
    "religion_majority": (0.199, 0.908, 0.516, 35),
    "race_any": (0.385, 0.786, 0.473, 158),
    "race_majority": (0.259, 0.892, 0.489, 54),
    "gender_any": (0.210, 0.709, 0.563, 118),
    "gender_majority": (0.082, 0.835, 0.572, 26),
}
COMMUNITIES = {
    "african": 315, "islam": 194, "jewish": 188, "homosexual": 182, "women": 147, "refugee": 85, "arab": 67,
    "caucasian": 52, "hispanic": 35, "asian": 36,
}  # fmt: skip


def annotated(label: str, *target: str) -> dict[str, Any]:
    return {"label": label, "annotator_id": 1, "target": list(target)}


MADE = {
    "a_gab": {
        "post_id": "a_gab",
        "annotators": [
            annotated("hatespeech", "Islam", "Women"),
            annotated("offensive", "Islam"),
            annotated("offensive", "Other"),
        ],
        "rationales": [],
        "post_tokens": ["some", "words"],
    },
    "b_gab": {
        "post_id": "b_gab",
        "annotators": [annotated("normal", "None"), annotated("normal", "Minority"), annotated("offensive", "Jewish")],
        "rationales": [],
        "post_tokens": ["other", "words"],
    },
    "c_gab": {
        "post_id": "c_gab",
        "annotators": [annotated("normal"), annotated("offensive", "Men"), annotated("hatespeech", "Men")],
        "rationales": [],
        "post_tokens": ["undecided"],
    },
    "d_gab": {
        "post_id": "d_gab",
        "annotators": [annotated("hatespeech", "Women", "Women"), annotated("hatespeech"), annotated("normal")],
        "rationales": [],
        "post_tokens": ["some", "words"],
    },
}
MADE_SPLIT = {"train": ["b_gab", "a_gab"], "val": ["d_gab"], "test": []}


@pytest.fixture(scope="module")
def published(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return load_hatexplain(root=data_root, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def raw(data_root: Path) -> list[dict[str, Any]]:
    lines = gzip.decompress((data_root / "hatexplain" / "posts.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.real_data
def test_the_official_split_and_classes(published: Examples, data_root: Path) -> None:
    assert Counter(published.frame["split"]) == {"train": 15_383, "calibration": 1_922, "test": 1_924}
    counts = published.frame.groupby("split")["label"].value_counts()
    assert (counts["calibration", 0], counts["calibration", 1]) == (781, 1_141)
    assert (counts["test", 0], counts["test", 1]) == (782, 1_142)
    divisions = json.loads(gzip.decompress((data_root / "hatexplain" / "post_id_divisions.json.gz").read_bytes()))
    for part, name in (("train", "train"), ("val", "calibration"), ("test", "test")):
        assert set(published.split(name)["example_id"]) == set(divisions[part])


@pytest.mark.real_data
def test_three_classes_have_the_published_counts(data_root: Path, tmp_path: Path, published: Examples) -> None:
    three = load_hatexplain(root=data_root, cache=tmp_path, task="three_class")
    named = Counter(np.asarray(three.classes)[three.labels].tolist())
    assert named == {"hatespeech": 5_935, "offensive": 5_480, "normal": 7_814}
    assert published.classes == ("normal", "toxic")
    assert ((three.labels > 0) == (published.labels == 1)).all()
    assert three.example_ids == published.example_ids


@pytest.mark.real_data
@pytest.mark.parametrize("group", CELLS)
def test_the_published_cells_of_the_test_split(published: Examples, group: str) -> None:
    test = published.split("test")
    mentioned, toxic = (test[f"sensitive:{group}"] == MENTIONED).to_numpy(), test["label"].to_numpy() == 1
    share, toxic_if_mentioned, toxic_if_not, normal_mentions = CELLS[group]
    assert abs(mentioned.mean() - share) < 6e-4
    assert abs(toxic[mentioned].mean() - toxic_if_mentioned) < 6e-4
    assert abs(toxic[~mentioned].mean() - toxic_if_not) < 6e-4
    assert (mentioned & ~toxic).sum() == normal_mentions


@pytest.mark.real_data
def test_the_published_counts_of_the_ten_communities(published: Examples) -> None:
    test = published.split("test")
    found = {name: int((test[f"sensitive:target_{name}"] == MENTIONED).sum()) for name in COMMUNITIES}
    assert found == COMMUNITIES


@pytest.mark.real_data
def test_targets_follow_the_official_rule_not_the_count_of_annotators(
    raw: list[dict[str, Any]], published: Examples
) -> None:
    rows = published.frame.set_index("example_id")
    differing = 0
    for record in raw:
        if record["split"] in ("val", "test"):
            merged = Counter(name for named in record["annotator_targets"] for name in named)
            official = {name for name, count in merged.items() if count > 1}
            differing += official != set(record["targets_2of3"])
            ours = {name for name in COMMUNITIES if rows.at[record["post_id"], f"sensitive:target_{name}"] == MENTIONED}
            assert ours == {name.lower() for name in official} & set(COMMUNITIES)
    assert differing == 22  # all of them by a list that repeats "Other", so the ten communities agree


@pytest.mark.real_data
def test_held_out_posts_equal_those_of_the_original_schema(data_root: Path) -> None:
    folder = data_root / "hatexplain"
    contents = {path.name: gzip.decompress(path.read_bytes()) for path in folder.glob("*.gz")}
    held_out = json.loads(contents["post_id_divisions.json.gz"]) | {"train": []}
    original = parse_original(contents["dataset_valtest.json.gz"], json.dumps(held_out).encode())
    known = {post.post_id: post for post in parse_reassembled(contents["posts.jsonl.gz"])}
    assert len(original) == 3_846
    for post in original:
        assert replace(known[post.post_id], seen=frozenset(), families=None) == post


@pytest.mark.real_data
def test_what_is_said_of_a_post_without_lists_is_never_wrong(data_root: Path) -> None:
    posts = parse_reassembled(gzip.decompress((data_root / "hatexplain" / "posts.jsonl.gz").read_bytes()))
    held_out = [post for post in posts if post.targets is not None]
    answered: Counter[str] = Counter()
    for post in held_out:
        exact, derived = mentioned_groups(post), mentioned_groups(replace(post, targets=None))
        for group, answer in derived.items():
            assert answer in (None, exact[group]), (post.post_id, group)
            answered[group] += answer is not None
    assert len(held_out) == 3_846
    assert answered["religion_any"] == len(
        [p for p in held_out if p.families is not None or p.seen & FAMILIES["religion"]]
    )
    assert all(answered[group] > len(held_out) / 2 for group in answered)


@pytest.mark.real_data
def test_the_family_map_is_the_one_the_data_were_coded_with(raw: list[dict[str, Any]]) -> None:
    checked = 0
    for record in raw:
        if record["targets_any"] is not None and record["target_families"] is not None:
            named = set(record["targets_any"])
            assert {family for family, who in CODED_FAMILIES.items() if who & named} == set(record["target_families"])
            checked += 1
    assert checked == 3_798


@pytest.mark.real_data
def test_equal_texts_are_one_subject(published: Examples, data_root: Path, tmp_path: Path) -> None:
    by_text = published.frame.groupby("text")["subject_id"]
    assert (by_text.nunique() == 1).all()
    assert (by_text.first() == published.frame.groupby("text")["example_id"].first()).all()
    repeated = by_text.size()[lambda size: size > 1]
    assert (len(repeated), int(repeated.sum())) == (22, 59)
    alone = load_hatexplain(root=data_root, cache=tmp_path, group_duplicates=False)
    assert (alone.frame["subject_id"] == alone.frame["example_id"]).all()


@pytest.mark.real_data
def test_another_dataset_json_is_refused(data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hatexplain"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(MADE))
    with pytest.raises(ChecksumError, match=r"dataset\.json: expected content with git:741bc082"):
        load_hatexplain(root=tmp_path, cache=tmp_path)
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"posts\.jsonl\.gz; no such file"):
        load_hatexplain(root=tmp_path, cache=tmp_path)


def test_posts_of_other_numbers_than_published_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contents = {"dataset.json": json.dumps(MADE).encode(), "post_id_divisions.json": json.dumps(MADE_SPLIT).encode()}
    monkeypatch.setattr(
        "fairsisa.data.hatexplain.read_source", lambda source, **_: contents[Path(source.plain_path).name]
    )
    with pytest.raises(DataError, match=r"hatexplain: expected the published .*5935.*, got \{'offensive': 1"):
        load_hatexplain(cache=tmp_path)


def test_published_classes_in_another_split_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels = ["hatespeech"] * 5_935 + ["offensive"] * 5_480 + ["normal"] * 7_814
    splits = ["train"] * 15_383 + ["calibration"] * 1_922 + ["test"] * 1_924
    posts = [Post(str(i), split, "t", label, ()) for i, (label, split) in enumerate(zip(labels, splits, strict=True))]
    monkeypatch.setattr("fairsisa.data.hatexplain._read_posts", lambda *_: posts)
    assert len(load_hatexplain(cache=tmp_path)) == 19_229
    posts[0] = replace(posts[0], split="test")
    with pytest.raises(DataError, match=r"got .*'test': 1925, 'train': 15382, 'calibration': 1922"):
        load_hatexplain(cache=tmp_path)


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a task of binary, three_class, got 'toxicity'"):
        load_hatexplain(cache=tmp_path, task="toxicity")


def made_posts() -> list[Post]:
    return parse_original(json.dumps(MADE).encode(), json.dumps(MADE_SPLIT).encode())


def test_the_original_schema_is_read_in_the_order_of_the_data() -> None:
    posts = made_posts()
    assert [(post.post_id, post.split, post.label, post.text) for post in posts] == [
        ("a_gab", "train", "offensive", "some words"),
        ("b_gab", "train", "normal", "other words"),
        ("d_gab", "calibration", "hatespeech", "some words"),
    ]
    examples = posts_to_examples(posts, task="three_class", group_duplicates=True)
    assert examples.labels.tolist() == [1, 0, 2]
    assert examples.frame["subject_id"].tolist() == ["a_gab", "b_gab", "a_gab"]
    assert None not in examples.frame.filter(like="sensitive:").to_numpy().ravel().tolist()


@pytest.mark.parametrize(
    ("row", "mentioned"),
    [
        (0, {"religion_any", "gender_any", "religion_majority", "target_islam"}),
        (1, {"religion_any", "race_any"}),
        (2, {"gender_any", "target_women"}),
    ],
)
def test_groups_by_hand(row: int, mentioned: set[str]) -> None:
    answers = mentioned_groups(made_posts()[row])
    assert {group for group, answer in answers.items() if answer == MENTIONED} == mentioned
    assert set(answers.values()) <= {MENTIONED, NOT_MENTIONED}
    assert len(answers) == 16


@pytest.mark.parametrize(
    ("seen", "families", "expected"),
    [
        ((), (), (NOT_MENTIONED, NOT_MENTIONED, NOT_MENTIONED)),
        ((), ("religion", "race", "gender"), (MENTIONED, MENTIONED, None)),
        (("Women",), ("gender",), (NOT_MENTIONED, NOT_MENTIONED, MENTIONED)),
        (("Refugee",), ("minority",), (NOT_MENTIONED, None, NOT_MENTIONED)),
        (("Minority",), ("minority",), (NOT_MENTIONED, MENTIONED, NOT_MENTIONED)),
        (("Jewish",), None, (MENTIONED, None, None)),
        (("None",), None, (None, None, None)),
    ],
)
def test_what_families_and_seen_targets_settle(
    seen: tuple[str, ...], families: tuple[str, ...] | None, expected: tuple[str | None, ...]
) -> None:
    coded = None if families is None else frozenset(families)
    answers = mentioned_groups(Post("p", "train", "t", "normal", None, frozenset(seen), coded))
    assert tuple(answers[f"{family}_any"] for family in ("religion", "race", "gender")) == expected
    assert all(answers[f"{family}_majority"] != MENTIONED for family in FAMILIES)


def test_a_split_that_does_not_fit_the_data_is_refused() -> None:
    missing = json.dumps({"train": ["a_gab", "zz"], "val": [], "test": []}).encode()
    with pytest.raises(DataError, match="1 posts of the split are not in the data, first 'zz'"):
        parse_original(json.dumps(MADE).encode(), missing)
    undecided = json.dumps({"train": ["c_gab"], "val": [], "test": []}).encode()
    with pytest.raises(DataError, match="1 posts of the split have no majority label, first 'c_gab'"):
        parse_original(json.dumps(MADE).encode(), undecided)
