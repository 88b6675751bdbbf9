"""Load HateXplain: posts, their class, the communities they mention."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd

from fairsisa.data.sources import SourceFile, github_url, read_source
from fairsisa.errors import DataError
from fairsisa.tables import CALIBRATION, SENSITIVE, TEST, TRAIN, Examples

Task = Literal["binary", "three_class"]

NAME = "hatexplain"
MENTIONED, NOT_MENTIONED = "mentioned", "not mentioned"
UNDECIDED = "undecided"
SPLIT_NAMES = MappingProxyType({"train": TRAIN, "val": CALIBRATION, "test": TEST})
CLASS_NAMES = MappingProxyType({"binary": ("normal", "toxic"), "three_class": ("normal", "offensive", "hatespeech")})
PUBLISHED_CLASSES = MappingProxyType({"hatespeech": 5935, "offensive": 5480, "normal": 7814})
PUBLISHED_SPLITS = MappingProxyType({TRAIN: 15383, CALIBRATION: 1922, TEST: 1924})

FAMILIES = MappingProxyType(
    {
        "religion": frozenset({"Islam", "Jewish", "Christian", "Hindu", "Buddhism", "Nonreligious"}),
        "race": frozenset({"African", "Arab", "Asian", "Caucasian", "Hispanic", "Indian", "Indigenous", "Minority"}),
        "gender": frozenset({"Women", "Men"}),
    }
)
"""Families of communities that the groups of this package are built from."""

CODED_FAMILIES = MappingProxyType(
    {
        "gender": frozenset({"Women", "Men", "Homosexual", "Heterosexual", "Bisexual", "Asexual"}),
        "religion": FAMILIES["religion"],
        "race": FAMILIES["race"] - {"Minority"},
        "economic": frozenset({"Economic"}),
        "minority": frozenset({"Refugee", "Minority", "Disability"}),
    }
)
"""Families as coded in `target_families`, the exact image of a post's communities (the map of magpie-multi-task)."""

OFFICIAL_COMMUNITIES = (
    "African", "Islam", "Jewish", "Homosexual", "Women", "Refugee", "Arab", "Caucasian", "Hispanic", "Asian",
)  # fmt: skip
"""The ten communities of the authors' own bias evaluation (Bias_Calculation_NB.ipynb)."""

_COMMIT = "01d742279dac941981f53806154481c0e15ee686"
DATASET = SourceFile(
    "hatexplain/dataset.json", github_url("hate-alert/HateXplain", _COMMIT, "Data/dataset.json"), "git:741bc082"
)
DIVISIONS = SourceFile(
    "hatexplain/post_id_divisions.json.gz",
    github_url("hate-alert/HateXplain", _COMMIT, "Data/post_id_divisions.json"),
    "sha256:c2fb0d89862e7897b11ea3e9380753f15a793482b4b70ad0532dfb1212212835",
)
POSTS = SourceFile(
    "hatexplain/posts.jsonl.gz",
    DATASET.url,
    "sha256:9d1cfce3335259b043d1f1f04e590900597bcaa7441dad6190f393618c0164cf",
)
"""Every post re-assembled from public copies, for data folders without `dataset.json`."""


@dataclass(frozen=True)
class Post:
    """One decided post of the official split.

    `targets` holds the communities each of the three annotators named, or None where these lists are lost; then `seen`
    is a subset of the communities that at least one annotator named, and `families` the `CODED_FAMILIES` of all of
    them, or None where even these are lost.
    """

    post_id: str
    split: str
    text: str
    label: str
    targets: tuple[tuple[str, ...], ...] | None
    seen: frozenset[str] = frozenset()
    families: frozenset[str] | None = None


def load_hatexplain(
    *, root: Path | None = None, cache: Path, task: Task = "binary", group_duplicates: bool = True
) -> Examples:
    """Load HateXplain (Mathew et al., AAAI 2021; arXiv:2012.10289): 19,229 posts, the official split.

    `val` is the calibration split. `binary` has the classes normal and toxic (hatespeech or offensive), as in the
    authors' own bias evaluation; `three_class` has normal, offensive and hatespeech. Posts that three annotators label
    in three ways are in no official split, hence not in the table.

    A post has no author, so each is a subject of its own. With `group_duplicates`, posts of exactly the same text are
    one subject (named by the first of them): who deletes a text deletes it wherever it occurs.

    Sensitive features say whether a post mentions a community: `religion_any`, `race_any`, `gender_any` (named by any
    annotator), `religion_majority`, ... (a community of the family named by two annotators or more), and ten official
    targets such as `target_african` (named more than once in the annotators' lists together). Values are "mentioned",
    "not mentioned", or None where the annotators' lists are lost and what remains decides neither; with the authors'
    `dataset.json` nothing is unknown. Without it only calibration and test posts are fully known; of a train post the
    `_majority` and `target_` features then say at most "not mentioned", so compare groups on held-out posts.

    Raises:
        DataError: when `task` is unknown, or the files do not hold the published numbers of posts.
        ChecksumError: when a file is not the recorded one.
    """
    if task not in CLASS_NAMES:
        raise DataError(f"{NAME}: expected a task of {', '.join(CLASS_NAMES)}, got {task!r}.")
    posts = _read_posts(root, cache)
    _require_published(posts)
    return posts_to_examples(posts, task=task, group_duplicates=group_duplicates)


def posts_to_examples(posts: Sequence[Post], *, task: Task, group_duplicates: bool) -> Examples:
    """Return the examples table of the given posts, in their order."""
    first_with: dict[str, str] = {}
    subjects = [first_with.setdefault(post.text, post.post_id) for post in posts]
    ids = [post.post_id for post in posts]
    columns: dict[str, Any] = {
        "example_id": ids,
        "subject_id": subjects if group_duplicates else ids,
        "text": [post.text for post in posts],
        "label": pd.Series([_class_index(post.label, task) for post in posts], dtype="int64"),
        "split": [post.split for post in posts],
    }
    mentions = pd.DataFrame([mentioned_groups(post) for post in posts], dtype=object)
    columns |= {SENSITIVE + str(group): mentions[group] for group in mentions.columns}
    return Examples(NAME, pd.DataFrame(columns), CLASS_NAMES[task])


def parse_original(dataset: bytes, divisions: bytes) -> list[Post]:
    """Return the decided posts of the authors' `dataset.json`, split as in their `post_id_divisions.json`.

    Raises:
        DataError: when a post of the split is missing or has no majority label.
    """
    records: Mapping[str, Any] = json.loads(dataset)
    split_of = {post_id: SPLIT_NAMES[part] for part, ids in json.loads(divisions).items() for post_id in ids}
    missing = [post_id for post_id in split_of if post_id not in records]
    if missing:
        raise DataError(f"{NAME}: {len(missing)} posts of the split are not in the data, first {missing[0]!r}.")
    posts = [_original_post(records[post_id], split_of[post_id]) for post_id in records if post_id in split_of]
    undecided = [post.post_id for post in posts if post.label == UNDECIDED]
    if undecided:
        raise DataError(f"{NAME}: {len(undecided)} posts of the split have no majority label, first {undecided[0]!r}.")
    return posts


def parse_reassembled(lines: bytes) -> list[Post]:
    """Return the decided posts of `posts.jsonl`, a line a post."""
    records = [json.loads(line) for line in lines.splitlines()]
    return [_reassembled_post(record) for record in records if record["split"] is not None]


def mentioned_groups(post: Post) -> dict[str, str | None]:
    """Return what is certain of a post: for each group "mentioned", "not mentioned" or None."""
    answers: dict[str, bool | None] = {f"{family}_any": _by_any(post, who) for family, who in FAMILIES.items()}
    answers |= {f"{family}_majority": _by_majority(post, who) for family, who in FAMILIES.items()}
    answers |= {f"target_{who.lower()}": _by_official_rule(post, who) for who in OFFICIAL_COMMUNITIES}
    words = {True: MENTIONED, False: NOT_MENTIONED, None: None}
    return {group: words[answer] for group, answer in answers.items()}


def _by_any(post: Post, communities: frozenset[str]) -> bool | None:
    if post.targets is not None:
        return any(communities.intersection(named) for named in post.targets)
    if communities & post.seen:
        return True
    if post.families is None:
        return None
    if any(CODED_FAMILIES[family] <= communities for family in post.families):
        return True
    may_hold = any(CODED_FAMILIES[family] & communities for family in post.families)
    return None if may_hold else False


def _by_majority(post: Post, communities: frozenset[str]) -> bool | None:
    if post.targets is not None:
        return sum(bool(communities.intersection(named)) for named in post.targets) >= 2
    return False if _by_any(post, communities) is False else None


def _by_official_rule(post: Post, community: str) -> bool | None:
    if post.targets is not None:
        return sum(named.count(community) for named in post.targets) > 1
    return False if _by_any(post, frozenset({community})) is False else None


def _original_post(record: Mapping[str, Any], split: str) -> Post:
    annotators = record["annotators"]
    label, votes = Counter(annotator["label"] for annotator in annotators).most_common(1)[0]
    return Post(
        post_id=record["post_id"],
        split=split,
        text=" ".join(record["post_tokens"]),
        label=label if votes >= 2 else UNDECIDED,
        targets=_lists(annotator["target"] for annotator in annotators),
    )


def _reassembled_post(record: Mapping[str, Any]) -> Post:
    targets, families = record["annotator_targets"], record["target_families"]
    return Post(
        post_id=record["post_id"],
        split=SPLIT_NAMES[record["split"]],
        text=record["text"],
        label=record["label"],
        targets=None if targets is None else _lists(targets),
        seen=frozenset(record["targets_seen"]),
        families=None if families is None else frozenset(families),
    )


def _lists(targets: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(named) for named in targets)


def _class_index(label: str, task: Task) -> int:
    if task == "binary":
        return int(label != "normal")
    return CLASS_NAMES[task].index(label)


def _read_posts(root: Path | None, cache: Path) -> list[Post]:
    if root is None or (root / DATASET.path).is_file():
        dataset, divisions = (read_source(source, root=root, cache=cache) for source in (DATASET, DIVISIONS))
        return parse_original(dataset, divisions)
    return parse_reassembled(read_source(POSTS, root=root, cache=cache))


def _require_published(posts: Sequence[Post]) -> None:
    classes, splits = Counter(post.label for post in posts), Counter(post.split for post in posts)
    if classes != PUBLISHED_CLASSES or splits != PUBLISHED_SPLITS:
        raise DataError(
            f"{NAME}: expected the published {dict(PUBLISHED_CLASSES)} posts in {dict(PUBLISHED_SPLITS)}, got "
            f"{dict(classes)} in {dict(splits)}. Replace the files by fresh copies."
        )
