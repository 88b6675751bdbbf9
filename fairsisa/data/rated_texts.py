"""Load texts that people rated for toxicity or regard, on which raters of written texts are trained."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from fairsisa.data.columns import keyed_splits
from fairsisa.data.sources import SourceFile, github_url, read_source
from fairsisa.errors import DataError
from fairsisa.tables import CALIBRATION, SENSITIVE, TEST, TRAIN, Examples

TOXICITY, REGARD = "toxicity", "regard"
TOXICITY_CLASSES = ("not_toxic", "toxic")
REGARD_CLASSES = ("negative", "neutral", "positive")
DAVIDSON, TOXIGEN, IMPLICIT_HATE = "davidson", "toxigen", "implicit_hate"
SEVERAL = "several"
HATE_LABELS = MappingProxyType({"neutral": 0, "hate": 1})
TWEET_CLASSES = MappingProxyType({"0": 1, "1": 1, "2": 0})
"""Davidson et al.: hate speech and offensive language are toxic, neither is not."""
NESTED = MappingProxyType({("asian", "chinese"): "chinese", ("mexican", "latino"): "mexican"})
"""Two of ToxiGen's 13 groups are named together with a wider one."""
REGARD_LABELS = MappingProxyType({"-1": 0, "0": 1, "1": 2})
REGARD_SPLITS = MappingProxyType({"train": TRAIN, "dev": CALIBRATION, "test": TEST})
RESPECT = "XYZ was "
"""So begin the five templates of Sheng et al. that ask for respect; the five others ask for an occupation."""
PRONOUNS = MappingProxyType({"female": frozenset({"she", "her", "hers"}), "male": frozenset({"he", "him", "his"})})

_SAFE_NLP = ("microsoft/SafeNLP", "e351b6cb892284cf843b88e363b1a6dbaded584e")
_REGARD = ("ewsheng/nlg-bias", "7f8d08ea4f33bf3368c5cb0d0ac5f9c515625546")
TWEETS_FILE = SourceFile(
    "davidson_hate_offensive/labeled_data.csv.gz",
    github_url(
        "t-davidson/hate-speech-and-offensive-language",
        "cb50f7e9eb855a99abc51423bf40df0e26d6fe30",
        "data/labeled_data.csv",
    ),
    "sha256:fcb8bc7c68120ae4af04a5b9acd58585513ede11e1548ebf36a5c2040b6f6281",
)
TOXIGEN_FILE = SourceFile(
    "toxigen/toxiGen.json.gz",
    github_url(*_SAFE_NLP, "data/toxiGen.json"),
    "sha256:42863b997f545833b8c9bfe7fc950aeaccc274d49f7386384db147face745fc3",
)
IMPLICIT_HATE_FILE = SourceFile(
    "toxigen/implicitHate.json.gz",
    github_url(*_SAFE_NLP, "data/implicitHate.json"),
    "sha256:119771b0b5332de9922a180eec11ca83b303b6acfccbc358ea1a3f4c08125320",
)
REGARD_FILES = MappingProxyType(
    {
        part: SourceFile(f"nlg_bias/regard/{part}.tsv", github_url(*_REGARD, f"data/regard/{part}.tsv"), digest)
        for part, digest in (
            ("train", "sha256:2b734fae84fa82ae969b5183607760c905cd333b90fd27e8d83ed311c6f923b0"),
            ("dev", "sha256:6d1eb2e617acfb55ddfe0e77f54f836f3093a379934e7aab07b1cb3e6facb5db"),
            ("test", "sha256:1ac5fbd901cba6f441c153234eca41cb29d8719529ca81e760213bd9c7813017"),
        )
    }
)


@dataclass(frozen=True)
class RatedText:
    """One text with the class people gave it, its source, and the group it is about, where one is known."""

    text_id: str
    text: str
    label: int
    source: str
    target_group: str | None = None


def load_toxicity(*, root: Path | None = None, cache: Path) -> Examples:
    """Load 45,497 texts that people rated: not_toxic or toxic.

    Tweets of Davidson et al. (ICWSM 2017: hate speech and offensive language are toxic), statements of ToxiGen
    (Hartvigsen et al., ACL 2022) and tweets of the Implicit Hate Corpus (ElSherief et al., EMNLP 2021), both as
    selected by SafeNLP (Hosseini, Palangi, Awadallah 2023: "hate" is toxic).

    A text has no author, so each is a subject of its own; texts that are exactly the same are one subject, named by
    the first, so that none is in two splits. Splits are dealt by a keyed hash of the subject. Sensitive features:
    `source`, and `target_group`, the group of people a statement of ToxiGen is about, "several" for more than one, and
    None for tweets, of which it is not known.

    Raises:
        DataError: when a label is unknown, or a file cannot be had.
        ChecksumError: when a file is not the recorded one.
    """
    tweets, toxigen, implicit = (
        read_source(file, root=root, cache=cache) for file in (TWEETS_FILE, TOXIGEN_FILE, IMPLICIT_HATE_FILE)
    )
    rated = [*parse_tweets(tweets), *parse_hate(toxigen, TOXIGEN), *parse_hate(implicit, IMPLICIT_HATE)]
    return toxicity_examples(rated)


def toxicity_examples(rated: Sequence[RatedText]) -> Examples:
    """Return the examples table of texts rated for toxicity, in their order."""
    columns = _columns(rated)
    columns |= {
        "split": keyed_splits(columns["subject_id"]),
        f"{SENSITIVE}source": [each.source for each in rated],
        f"{SENSITIVE}target_group": [each.target_group for each in rated],
    }
    return Examples(TOXICITY, pd.DataFrame(columns), TOXICITY_CLASSES)


def load_regard(*, root: Path | None = None, cache: Path) -> Examples:
    """Load the 302 sentences of Sheng et al. (EMNLP 2019) about a person XYZ: negative, neutral or positive regard.

    The official split: `dev` is the calibration split. `train_other` is left out: it repeats `train`, and adds 23
    sentences of a class "other". One test sentence is in `train` as well, so the two are one subject. Sensitive
    features: `bias_context` ("respect" or "occupation", by the prompt that the sentence goes on from) and `gender`
    ("female" or "male" where a sentence has pronouns of one, else None).

    Raises:
        DataError: when a label is unknown, or a file cannot be had.
        ChecksumError: when a file is not the recorded one.
    """
    rated = [
        each
        for part, file in REGARD_FILES.items()
        for each in parse_regard(read_source(file, root=root, cache=cache), part)
    ]
    return regard_examples(rated)


def regard_examples(rated: Sequence[RatedText]) -> Examples:
    """Return the examples table of texts rated for regard, whose sources are the parts of the split, in their order."""
    columns = _columns(rated) | {
        "split": [REGARD_SPLITS[each.source] for each in rated],
        f"{SENSITIVE}bias_context": ["respect" if each.text.startswith(RESPECT) else "occupation" for each in rated],
        f"{SENSITIVE}gender": pd.Series([gender_of(each.text) for each in rated], dtype=object),
    }
    return Examples(REGARD, pd.DataFrame(columns), REGARD_CLASSES)


def gender_of(text: str) -> str | None:
    """Return "female" or "male" where a text has pronouns of that gender alone, else None."""
    words = frozenset(re.findall(r"[a-z]+", text.lower()))
    found = [gender for gender, pronouns in PRONOUNS.items() if words & pronouns]
    return found[0] if len(found) == 1 else None


def parse_tweets(content: bytes) -> Iterator[RatedText]:
    """Yield the tweets of Davidson et al.'s CSV; a tweet may go over several lines."""
    for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")):
        text_id = f"{DAVIDSON}-{row['']}"
        yield RatedText(text_id, row["tweet"], _label(TOXICITY, text_id, TWEET_CLASSES, row["class"]), DAVIDSON)


def parse_hate(content: bytes, source: str) -> Iterator[RatedText]:
    """Yield the texts of one of SafeNLP's JSON lists; `source` names it."""
    for row in json.loads(content):
        text_id = f"{source}-{row['id']}"
        label = _label(TOXICITY, text_id, HATE_LABELS, row["label"])
        group = _group(row["target_groups"]) if source == TOXIGEN else None
        yield RatedText(text_id, row["text"], label, source, group)


def parse_regard(content: bytes, part: str) -> Iterator[RatedText]:
    """Yield the sentences of one part of Sheng et al.'s data: a line each, its label before a tab; quotes are text."""
    lines = filter(None, content.decode("utf-8").split("\n"))
    for number, line in enumerate(lines, start=1):
        label, _, text = line.rstrip("\r").partition("\t")
        text_id = f"{REGARD}-{part}-{number:03d}"
        yield RatedText(text_id, text, _label(REGARD, text_id, REGARD_LABELS, label), part)


def _group(named: Sequence[str]) -> str:
    if len(named) == 1:
        return named[0]
    return NESTED.get((named[0], named[1]), SEVERAL) if len(named) == 2 else SEVERAL


def _label(corpus: str, text_id: str, labels: MappingProxyType[str, int], value: str) -> int:
    if value not in labels:
        raise DataError(f"{corpus}: expected a label of {', '.join(labels)}, got {value!r} for {text_id!r}.")
    return labels[value]


def _columns(rated: Sequence[RatedText]) -> dict[str, Any]:
    first_with: dict[str, str] = {}
    return {
        "example_id": [each.text_id for each in rated],
        "subject_id": [first_with.setdefault(each.text, each.text_id) for each in rated],
        "text": [each.text for each in rated],
        "label": pd.Series([each.label for each in rated], dtype="int64"),
    }
